// The service now: what needs attention, charts, models and events.
const WINDOW = 6;  // percentiles are those of the last 12 s

function parse(text) {
  const found = {};
  for (const line of text.split('\n')) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value.replace(/\\(.)/g, '$1');
    (found[match[1]] ||= []).push([labels, match[3] === '+Inf' ? Infinity : Number(match[3])]);
  }
  return found;
}
const isScore = labels => /^\/v[12]\/.*(score|infer)$/.test(labels.route || '');
function sums(samples, key, keep = () => true) {
  const found = {};
  for (const [labels, value] of samples || []) if (keep(labels)) found[labels[key]] = (found[labels[key]] || 0) + value;
  return found;
}
const total = found => Object.values(found).reduce((a, b) => a + b, 0);
function snapshot(text) {
  // With several processes a series has one sample for each of them.
  const m = parse(text), one = name => m[name] ? m[name].reduce((sum, [, value]) => sum + value, 0) : NaN;
  return {
    at: performance.now() / 1e3, start: one('process_start_time_seconds'), processes: (m.process_start_time_seconds || [1]).length, metrics: m,
    cpu: one('process_cpu_seconds_total'), rss: one('process_resident_memory_bytes'), queue: one('gatehouse_queue_rows'),
    latency: sums(m.gatehouse_request_duration_seconds_bucket, 'le', isScore),
    status: sums(m.gatehouse_requests_total, 'status', isScore),
    shed: total(sums(m.gatehouse_shed_total, 'reason')),
    rows: one('gatehouse_request_candidates_sum'),
    stageSum: sums(m.gatehouse_stage_duration_seconds_sum, 'stage'), stageCount: sums(m.gatehouse_stage_duration_seconds_count, 'stage'),
    batches: sums(m.gatehouse_batch_rows_bucket, 'le'), busy: sums(m.gatehouse_lane_busy_seconds_total, 'lane'),
  };
}
function buckets(newer, older = {}) {  // cumulative → per bucket, in ascending order
  const edges = Object.keys(newer).sort((a, b) => (a === '+Inf') - (b === '+Inf') || a - b);
  let before = 0;
  const counts = edges.map(edge => { const n = newer[edge] - (older[edge] || 0), own = n - before; before = n; return Math.max(0, own); });
  return {edges, counts, total: before};
}
function quantile(q, {edges, counts, total}) {
  if (!total) return NaN;
  let rank = q * total;
  for (let i = 0; i < edges.length; i++) {
    if (rank <= counts[i]) {
      const low = i ? +edges[i - 1] : 0, high = edges[i] === '+Inf' ? low : +edges[i];
      return low + (high - low) * (counts[i] ? rank / counts[i] : 0);
    }
    rank -= counts[i];
  }
  return NaN;
}

// ---- now -------------------------------------------------------------------------------------
const history = [], lines = {p50: [], p95: [], p99: [], ok: [], shed: [], queue: []};
function point(name, value) { lines[name].push(value); if (lines[name].length > POINTS) lines[name].shift(); }

function drawNow(snap) {
  const last = history[history.length - 1];
  // Another process, or the same one restarted: its counters are not those of before.
  if (last && (last.start !== snap.start || snap.cpu < last.cpu)) history.length = 0;
  history.push(snap);
  if (history.length > WINDOW + 1) history.shift();
  const base = history[0], seconds = snap.at - base.at, known = seconds > 0;
  const latency = buckets(snap.latency, base.latency), rate = (total(snap.status) - total(base.status)) / seconds;
  const shed = (snap.shed - base.shed) / seconds, p99 = quantile(0.99, latency);
  point('p50', quantile(0.5, latency)); point('p95', quantile(0.95, latency)); point('p99', p99);
  point('ok', known ? rate : NaN); point('shed', known ? shed : NaN); point('queue', snap.queue);
  const busy = Object.fromEntries(Object.keys(snap.busy).map(lane => [lane, (snap.busy[lane] - (base.busy[lane] || 0)) / seconds / snap.processes]));
  const lanes = Object.values(busy), share = lanes.length ? total(busy) / lanes.length : 0;
  const errors = ((snap.status['500'] || 0) - (base.status['500'] || 0)) / seconds;
  const tile = (value, name, kind = '') => h('div', {class: 'card tile'}, h('b', {class: kind}, value), h('span', {}, name));
  const when = value => known ? value : '–';
  show('tiles',
    tile(when(short(rate)), 'requests/s'), tile(duration(p99), 'p99 latency', p99 > 0.1 ? 'bad' : ''),
    tile(when(short((snap.rows - base.rows) / seconds)), 'candidates/s'),
    tile(when(percent(share)), 'lanes busy', share > 0.8 ? 'warn' : ''),
    tile(known && rate ? percent(shed / rate) : '–', 'refused or late', shed > 0 ? 'bad' : ''),
    tile(when(short(errors)), 'errors/s', errors ? 'bad' : ''),
    tile(when(short((snap.cpu - base.cpu) / seconds)), 'CPU cores used'), tile(short(snap.rss / 1e6) + ' MB', 'memory'));
  show('latency', ...lineChart(['p50', 'p95', 'p99'].map(name => ({name, values: lines[name]})), duration, 'Latency'));
  show('rate', ...lineChart([{name: 'answered', values: lines.ok}, {name: 'refused or late', values: lines.shed}], short, 'Requests per second'));
  show('queue', ...lineChart([{name: 'rows', values: lines.queue}], short, 'Rows that wait'));
  drawStages(snap, base);
  const batches = buckets(snap.batches, base.batches), all = batches.total ? batches : buckets(snap.batches);
  show('batches', histogram(all.edges, all.counts, color(0), 'Rows in a batch'),
    h('p', {class: 'muted small'}, batches.total ? `${short(batches.total / seconds)} batches/s in the last ${Math.round(seconds)} s` : 'since the start'));
  return {busy, share, rate, shed, errors, p99};
}
function drawStages(snap, base) {
  const stages = Object.keys(snap.stageSum).map(stage => {
    const n = snap.stageCount[stage] - (base.stageCount[stage] || 0);
    return [stage, n > 0 ? (snap.stageSum[stage] - (base.stageSum[stage] || 0)) / n : 0];
  }).filter(([, mean]) => mean > 0);
  const sum = stages.reduce((all, [, mean]) => all + mean, 0);
  show('stages', ...(sum ? [
    h('div', {class: 'stack', role: 'img', 'aria-label': stages.map(([name, mean]) => `${name} ${duration(mean)}`).join(', ')},
      stages.map(([, mean], i) => h('i', {style: `width:${100 * mean / sum}%;background:${color(i)}`}))),
    legend(stages.map(([name, mean], i) => [name, duration(mean), color(i)])),
    h('p', {class: 'muted small'}, `${duration(sum)} from the body to the response`)] : [h('p', {class: 'muted'}, 'no score request in the last 12 s')]));
}
function drawLanes(engine, busy) {
  show('lanes', h('div', {class: 'scroll'}, h('table', {}, head('lane', 'busy', 'now'),
    h('tbody', {}, engine.lanes.map(lane => h('tr', {}, h('td', {}, lane.name),
      h('td', {}, h('div', {class: 'bar'}, h('i', {style: `width:${100 * Math.min(1, busy[lane.name] || 0)}%;background:var(--s0)`})), h('span', {class: 'num muted small'}, percent(busy[lane.name]))),
      h('td', {class: lane.alive ? '' : 'bad'}, !lane.alive ? 'dead or stuck' : lane.model ? `${lane.model}, ${lane.rows} rows` : 'idle')))))),
    ...engine.queues.map(queue => h('p', {class: 'muted small'},
      `${queue.model}: ${queue.rows} rows wait; a batch costs ${queue.batch_ms} ms + ${queue.row_us} µs a row`)));
}

// ---- what needs attention --------------------------------------------------------------------
function findings(reason, engine, list, now) {
  const found = [], add = (kind, what, why) => found.push([kind, what, why]);
  const dead = engine.lanes.filter(lane => !lane.alive).map(lane => lane.name);
  if (reason) add('bad', `not ready: ${reason}`, 'Requests should go to another replica until this is over.');
  if (dead.length) add('bad', `${dead.join(', ')}: dead or stuck`, 'Restart the process if the orchestrator does not. If it repeats, roll back the model that ran there.');
  if (now && now.errors > 0) add('bad', `${short(now.errors)} requests/s fail with 500`, 'The log has the cause under each request id. New since a version? Roll back.');
  if (now && now.shed > 0) add('bad', `${percent(now.shed / now.rate)} of the requests are refused or late`, 'Add replicas, send fewer candidates, or give less important callers x-request-priority: low.');
  if (now && now.p99 > 0.1) add('warn', `p99 latency is ${duration(now.p99)}`, 'Look at the stages: queue means too few lanes or replicas, compute a slow model or a CPU limit.');
  for (const artifact of list.refused) add('bad', `${artifact.model}, version ${artifact.version} is refused`, artifact.reason);
  for (const problem of list.policies.refused) add('bad', 'The policies file is refused; the previous policies stay', problem);
  for (const model of list.models) {
    if (model.not_ready && !reason) add('bad', `${model.name} is not ready`, model.not_ready);
    if (model.policy_problem) add('bad', `The policies do not apply to ${model.name}`, model.policy_problem);
    for (const problem of model.traffic.problems) add('bad', `traffic.toml of ${model.name}`, problem);
    for (const version of model.versions) {
      if (version.problem) add('bad', `${model.name}, version ${version.version} is damaged in the store`, version.problem);
      if (version.gates) version.gates.levels.forEach((level, i) => {
        if (!level.weights || version.gates.requests < 30) return;
        const unused = level.experts.filter((_, k) => expertShares(level)[k] < 0.05);
        if (unused.length) add('warn', `${model.name}, version ${version.version}: no gate uses ${unused.join(', ')}` + (version.gates.levels.length > 1 ? ` of level ${i + 1}` : ''), 'Train with fewer experts, or from another seed; compare with the version before.');
      });
    }
  }
  for (const ignored of list.ignored) add('warn', `The folder ${ignored.folder} is ignored`, ignored.reason);
  return found;
}
function drawFindings(found) {
  show('findings', ...found.map(([kind, what, why]) => h('li', {class: kind}, h('b', {}, what), h('span', {}, why))));
}

// ---- models ----------------------------------------------------------------------------------
let shownModels = '';
function drawModels(list, metrics) {
  if (list.models.length) show('cards', ...list.models.map(model => card(model, list.refused.filter(artifact => artifact.model === model.name), metrics)));
  else show('cards', message('No model is active. Publish a version into the store: python -m models train, or gatehouse import.', 'info'));
  const text = JSON.stringify(list.models.map(model => [model.name, model.version, model.policies]));
  if (text !== shownModels) { shownModels = text; setUpPlayground(list.models); }
}
const ROLES = {active: 'good', canary: 'warn', shadow: 'muted', previous: 'muted'};
function card(model, refused, metrics) {
  const info = ((metrics || {}).gatehouse_model_info || []).find(([labels]) => labels.model === model.name);
  const scores = metrics ? model.tasks.map((task, index) => {
    const of = sums(metrics.gatehouse_task_score_bucket, 'le', labels => labels.model === model.name && labels.task === task.name);
    const {edges, counts} = buckets(of);
    return h('div', {}, h('h4', {}, `Scores of ${task.name} (${task.unit || task.kind})`), histogram(edges, counts, color(index), `Scores of ${task.name}`));
  }) : [];
  return h('div', {class: 'card stacked', 'data-model': model.name},
    h('h3', {}, h('a', {href: `/v1/models/${model.name}`}, model.name), ` version ${model.version} `, h('span', {class: 'badge good'}, 'active')),
    h('p', {class: 'muted'}, `${model.architecture} on ${model.device}, ${model.inputs.length} features` + (info ? `, sha256 ${info[0].sha}` : '') + `; default policy ${model.default_policy}`),
    versionTable(model, refused), ...trafficNotes(model.traffic), ...tableNotes(metrics || {}, model.name), ...driftNotes(metrics || {}, model.name),
    h('div', {class: 'grid fit stacked'}, scores),
    h('div', {class: 'grid wide stacked'}, h('div', {}, h('h4', {}, 'Evaluation on held-out data'), evaluation(model)),
      ...model.versions.filter(version => version.gates).flatMap(version => gateUse(version, model.versions.length > 1))));
}
function versionTable(model, refused) {
  const golden = version => `${short(version.golden.largest_difference)} of ${short(version.golden.tolerance)}`;
  const parity = ({precision: {name, parity}}) => name + (parity ? `: τ ${short(parity.kendall_tau)}, top 50 ${percent(parity.top_50_overlap)}` : '');
  const rows = model.versions.map(version => h('tr', {class: version.problem ? 'bad' : ''}, h('td', {}, version.version), h('td', {}, h('span', {class: `badge ${ROLES[version.role] || ''}`}, version.role)),
    h('td', {}, new Date(version.created).toLocaleString()), h('td', {title: 'largest difference from the golden examples when it was loaded, and the most that it may be'}, golden(version)),
    h('td', {title: 'precision, and how near its order is to that of fp32'}, parity(version)), h('td', {}, version.problem || '')));
  rows.push(...refused.map(artifact => h('tr', {class: 'bad'}, h('td', {}, artifact.version), h('td', {}, h('span', {class: 'badge bad'}, 'refused')), h('td', {colspan: 4}, artifact.reason))));
  return h('div', {class: 'scroll'}, h('table', {}, head('version', 'role', 'created', 'golden difference', 'precision', ''), h('tbody', {}, rows)));
}
function trafficNotes({canary, shadow}) {
  const notes = [];
  if (canary) notes.push(`Canary ${canary.version} gets ${percent(canary.share)} of the requests, for ${long(canary.running_s)}: ${canary.state}${canary.reason ? `, ${canary.reason}` : ''}. `
    + `${short(canary.requests)} requests, ${canary.failed} failed, p99 ${short(canary.p99_ms)} ms (active: ${short(canary.active_requests)}, ${canary.active_failed}, ${short(canary.active_p99_ms)} ms)`
    + (canary.kendall_tau == null ? '' : `; Kendall's tau ${short(canary.kendall_tau)}`));
  if (shadow) notes.push(`Shadow ${shadow.version} scores ${percent(shadow.share)} of the requests: ${short(shadow.compared)} compared, ${short(shadow.dropped)} dropped, ${short(shadow.failed)} failed`
    + (shadow.kendall_tau == null ? '' : `; Kendall's tau ${short(shadow.kendall_tau)}, ${percent(shadow.top_10_overlap)} of the best 10 the same`));
  return notes.map(note => h('p', {class: 'small'}, note));
}
function drifts(metrics, series, label, name) {  // population stability index, largest first
  return (metrics[series] || []).filter(([labels]) => labels.model === name).map(([labels, value]) => [labels[label], value]).filter(([, value]) => isFinite(value)).sort((a, b) => b[1] - a[1]);
}
function driftNotes(metrics, name) {
  const words = (what, found) => `Drift of ${what} against the training data: ${found.slice(0, 5).map(([label, value]) => `${label} ${short(value)}`).join(', ')}`;
  return [['features', 'gatehouse_feature_drift', 'feature'], ['scores', 'gatehouse_score_drift', 'task']].map(([what, series, label]) => [what, drifts(metrics, series, label, name)])
    .filter(([, found]) => found.length).map(([what, found]) => h('p', {class: found[0][1] > 0.25 ? 'small bad' : 'small', title: 'population stability index: 0 is no change, above 0.25 a large one'}, words(what, found)));
}
function tableNotes(metrics, name) {  // item and user tables, if the model has any
  const of = (series, kind) => { const found = (metrics[series] || []).find(([labels]) => labels.model === name && labels.table === kind); return found && found[1]; };
  return (metrics.gatehouse_table_info || []).filter(([labels]) => labels.model === name).map(([labels]) => {
    const age = of('gatehouse_table_age_seconds', labels.table), limit = of('gatehouse_table_max_age_seconds', labels.table);
    return h('p', {class: limit && age > limit ? 'small bad' : 'small'}, `Table ${labels.table} ${labels.version}: ${short(of('gatehouse_table_rows', labels.table))} rows, newest data ${long(age)} old`
      + (limit ? `, at most ${long(limit)}` : '') + (of('gatehouse_table_folded', labels.table) ? ', folded' : ''));
  });
}
function evaluation(model) {
  const versions = model.versions.filter(version => Object.keys(version.evaluation).length);
  if (!versions.length) return h('p', {class: 'muted'}, 'no evaluation in the manifest');
  const measured = {};  // task → measures, in the order in which they appear
  for (const {evaluation} of versions) for (const [task, figures] of Object.entries(evaluation)) measured[task] = [...new Set([...(measured[task] || []), ...Object.keys(figures)])];
  const figure = (version, task, measure) => (version.evaluation[task] || {})[measure];
  if (versions.length === 1) {
    const measures = [...new Set(Object.values(measured).flat())], tasks = Object.keys(measured);
    return h('div', {class: 'scroll'}, h('table', {}, head('measure', ...tasks), h('tbody', {}, measures.map(measure =>
      h('tr', {}, h('th', {scope: 'row'}, measure), tasks.map(task => h('td', {}, short(figure(versions[0], task, measure)))))))));
  }
  const active = versions.find(version => version.version === model.version);
  return h('div', {class: 'scroll'}, h('table', {}, head('task', 'measure', ...versions.map(version => `version ${version.version}`)), h('tbody', {},
    Object.entries(measured).flatMap(([task, measures]) => measures.map(measure => h('tr', {}, h('td', {}, task), h('td', {}, measure), versions.map(version => {
      const value = figure(version, task, measure), by = active && version !== active && value != null ? value - figure(active, task, measure) : NaN;
      return h('td', {}, short(value), isFinite(by) && by ? h('span', {class: 'muted small'}, ` ${signed(by)}`) : '');
    })))))));
}
function gateUse({version, gates}, named) {
  return gates.levels.map((level, i) => {
    const title = `Expert use${gates.levels.length > 1 ? ` in level ${i + 1}` : ''}${named ? `, version ${version}` : ''}`;
    return h('div', {'data-gates': version}, h('h4', {}, title),
      level.weights ? heatMap(level, gates.requests) : h('p', {class: 'muted'}, 'no request was sampled yet'));
  });
}

// ---- events ----------------------------------------------------------------------------------
function drawEvents({events}) {
  const day = at => at.toDateString() === new Date().toDateString() ? '' : at.toLocaleDateString() + ' ';
  show('eventlist', ...(events.length ? events.map(event => {
    const at = new Date(event.at);
    return h('li', {}, h('time', {datetime: event.at}, day(at) + at.toLocaleTimeString()), h('span', {class: event.is_problem ? 'bad' : ''}, event.text));
  }) : [h('li', {class: 'muted'}, 'Nothing has happened since the start.')]));
}
