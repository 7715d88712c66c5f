// Asks the server every two seconds, less often while the page is hidden.
function setStatus(text, kind) { $('status').textContent = text; $('status').className = `badge ${kind}`; }
async function read(path) {
  const response = await fetch(path, {cache: 'no-store'});
  if (!response.ok) throw Object.assign(new Error(path), {status: response.status});
  return response;
}
async function poll() {
  try {
    const json = path => read(path).then(response => response.json());
    const [ready, engine, models, events] = await Promise.all([fetch('/readyz', {cache: 'no-store'}), json('/v1/engine'), json('/v1/models'), json('/v1/events')]);
    const text = await read('/metrics').then(response => response.text(), error => { if (error.status === 404) return null; throw error; });
    const reason = ready.ok ? '' : (await ready.json()).detail, snap = text === null ? null : snapshot(text);
    const now = snap && drawNow(snap), found = findings(reason, engine, models, now);
    const dead = engine.lanes.filter(lane => !lane.alive).length, refused = models.refused.length;
    if (reason) setStatus(`not ready: ${reason}`, 'bad');
    else if (dead) setStatus(`${dead} lane${dead > 1 ? 's' : ''} dead`, 'bad');
    else if (refused) setStatus(`ready; ${refused} version${refused > 1 ? 's' : ''} refused`, 'warn');
    else if (found.length) setStatus('ready; needs attention', 'warn');
    else setStatus('ready', 'good');
    show('problems', ...(snap ? [] : [message('Metrics are served on a separate port (GATEHOUSE_METRICS_PORT), so there are no charts here.', 'info')]));
    if (!snap) { show('tiles'); for (const id of ['latency', 'rate', 'queue', 'stages', 'batches']) $(id).parentElement.hidden = true; }
    drawFindings(found.length ? found : [['good', 'All is well', now && now.rate > 0 ? `${short(now.rate)} requests/s, p99 ${duration(now.p99)}, nothing refused` : 'No requests at the moment.']]);
    drawLanes(engine, now ? now.busy : {});
    drawModels(models, snap && snap.metrics);
    drawEvents(events);
  } catch (error) {
    setStatus('not reachable', 'bad');
    show('findings');
    show('problems', message('The server does not answer. What you see is the last that it said; this page tries again every 2 s.'));
  }
  setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
}
poll();
