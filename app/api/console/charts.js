// DOM, numbers and charts. The charts are plain SVG and tables: what a screen reader gets is in the
// document, colours follow the page, and nothing is loaded.
const POINTS = 90, POLL_MS = 2000;
const $ = id => document.getElementById(id);

function h(tag, attributes, ...children) {
  const svg = ['svg', 'path', 'rect', 'line', 'text', 'g', 'title'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') node.style.cssText = value;  // the page's policy refuses the attribute
    else if (value !== false && value != null) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter(child => child != null).map(child => child.nodeType ? child : String(child)));
  return node;
}
const show = (id, ...nodes) => $(id).replaceChildren(...nodes);
const color = index => `var(--s${index % 7})`;
const message = (text, kind = '') => h('div', {class: `message ${kind}`}, text);
const head = (...names) => h('thead', {}, h('tr', {}, names.map(name => h('th', {scope: 'col'}, name))));

function short(value) {
  if (value == null || !isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + ' M';
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + ' k';
  if (size && size < 1e-3) return value.toExponential(1).replace('-', '−');
  return size >= 100 ? value.toFixed(0) : String(+value.toPrecision(3));
}
function duration(s) {
  if (s == null || !isFinite(s)) return '–';
  return s >= 1 ? short(s) + ' s' : s >= 0.001 ? short(s * 1e3) + ' ms' : s ? short(s * 1e6) + ' µs' : '0';
}
const long = s => s < 120 ? `${Math.round(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
const percent = share => share == null || !isFinite(share) ? '–' : short(Math.round(1e3 * share) / 10) + ' %';
const signed = value => (value >= 0 ? '+' : '−') + short(Math.abs(value));

function niceTop(value) {  // the next of 1, 2, 4, 5, 10 times a power of ten: half of it is short, too
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 5, 10].find(factor => factor * power >= value * 0.999);
}
function lineChart(series, format, label) {
  const width = 320, height = 132, left = 48, bottom = height - 18, count = series[0].values.length;
  const values = series.flatMap(line => line.values).filter(isFinite);
  const top = niceTop(Math.max(...values, 0) || 1), span = Math.max(count, 16) - 1;
  const x = index => left + (width - left) * (index + span + 1 - count) / span, y = value => bottom - (bottom - 8) * value / top;
  const latest = count - 1, at = index => series.map(line => format(line.values[index]));
  const summary = index => series.map((line, i) => `${line.name} ${at(index)[i]}`).join(', ');
  const svg = h('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${label}: ${summary(latest)}`});
  for (const part of [0, 0.5, 1]) {
    const line = y(top * part);
    svg.append(h('line', {x1: left, x2: width, y1: line, y2: line, stroke: 'var(--line)'}),
      h('text', {x: left - 5, y: line + 4, 'text-anchor': 'end'}, format(top * part)));
  }
  const ago = Math.round(span * POLL_MS / 1e3);
  svg.append(h('text', {x: left, y: height - 3}, ago >= 120 ? `${Math.round(ago / 60)} min ago` : `${ago} s ago`), h('text', {x: width, y: height - 3, 'text-anchor': 'end'}, 'now'));
  series.forEach((line, index) => {
    let path = '', from = null, till = null;
    line.values.forEach((value, i) => {
      if (!isFinite(value)) { from = null; return; }
      path += `${from == null ? 'M' : 'L'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      if (from == null) from = x(i);
      till = x(i);
    });
    if (series.length === 1 && from != null) svg.append(h('path', {d: `${path}L${till} ${bottom}L${from} ${bottom}Z`, fill: color(index), opacity: 0.12}));
    svg.append(h('path', {d: path, fill: 'none', stroke: color(index), 'stroke-width': 1.8, 'stroke-linejoin': 'round', 'stroke-linecap': 'round'}));
  });
  const key = legend(series.map((line, i) => [line.name, at(latest)[i], color(i)]));
  const cursor = h('line', {y1: 8, y2: bottom, stroke: 'var(--muted)', 'stroke-dasharray': '2 2', visibility: 'hidden'});
  const point = index => {
    at(index).forEach((value, i) => { key.children[i].lastChild.textContent = value; });
    cursor.setAttribute('visibility', index === latest ? 'hidden' : 'visible');
    cursor.setAttribute('x1', x(index)); cursor.setAttribute('x2', x(index));
  };
  svg.append(cursor);
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), position = (event.clientX - box.left) * width / box.width;
    point(Math.max(0, Math.min(latest, Math.round((position - left) / (width - left) * span - (span + 1 - count)))));
  });
  svg.addEventListener('pointerleave', () => point(latest));
  return [svg, key];
}
function legend(entries) {
  return h('ul', {class: 'legend'}, entries.map(([name, value, fill]) =>
    h('li', {}, h('i', {style: `background:${fill}`}), name + ' ', h('b', {}, value))));
}
function histogram(edges, counts, fill, label) {
  const first = counts.findIndex(n => n > 0);
  if (first < 0) return h('p', {class: 'muted'}, 'no data yet');
  let end = counts.length;
  while (!(counts[end - 1] > 0)) end--;
  const from = Math.max(0, first - 1), shown = counts.slice(from, end), most = Math.max(...shown), total = shown.reduce((a, b) => a + b, 0);
  const width = 320, height = 104, step = width / shown.length;
  const svg = h('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${label}: most values are at most ${edges[from + shown.indexOf(most)]}`});
  shown.forEach((n, i) => {
    const tall = (height - 20) * n / most, edge = edges[from + i], low = from + i ? edges[from + i - 1] : '−∞';
    svg.append(h('rect', {x: i * step + 1, y: height - 16 - tall, width: Math.max(1, step - 2), height: tall, fill, rx: 1.5},
      h('title', {}, `${low} to ${edge}: ${percent(n / total)}`)));
  });
  // Labels end at the right edge of their bar. As many as fit beside each other, from the first that does not begin left of the chart.
  const texts = shown.map((_, i) => edges[from + i] === '+Inf' ? '∞' : short(+edges[from + i]));
  const wide = text => 6.5 * text.length, right = i => (i + 1) * step - 2;
  const every = Math.ceil(Math.max(shown.length / 7, (Math.max(...texts.map(wide)) + 8) / step));
  for (let i = texts.findIndex((text, i) => right(i) >= wide(text)); i >= 0 && i < texts.length; i += every)
    svg.append(h('text', {x: right(i), y: height - 3, 'text-anchor': 'end'}, texts[i]));
  return svg;
}
// The share of each expert, as the alert computes it: its largest weight of any gate, of an even one.
function expertShares({experts, weights}) {
  return experts.map((_, column) => Math.max(...weights.map(row => row[column] == null ? 0 : row[column] * row.filter(weight => weight != null).length)));
}
function heatMap(level, requests) {
  const shares = expertShares(level);
  const dead = position => shares[position] < 0.05;
  return h('div', {class: 'scroll'}, h('table', {class: 'heat'},
    h('caption', {class: 'small muted'}, `mean weight that each gate gives to each expert, over ${requests} recent request${requests > 1 ? 's' : ''}`),
    h('thead', {}, h('tr', {}, h('th', {scope: 'col'}, 'gate'), level.experts.map((expert, i) =>
      h('th', {scope: 'col', class: dead(i) ? 'bad' : '', title: dead(i) ? 'no gate uses this expert' : null}, expert + (dead(i) ? ' †' : ''))))),
    h('tbody', {}, level.gates.map((gate, row) => h('tr', {}, h('th', {scope: 'row'}, gate), level.weights[row].map((weight, i) =>
      weight == null ? h('td', {class: 'muted', title: 'this gate does not see this expert'}, '·')
        : h('td', {style: `background:rgba(var(--heat), ${(0.06 + 0.64 * weight).toFixed(3)})`, title: `${gate} gives ${level.experts[i]} ${percent(weight)}`}, weight < 0.005 ? '<1 %' : `${Math.round(100 * weight)} %`)))))));
}
