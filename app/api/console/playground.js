// The ranking playground. A policy of the server is asked through the score API; a formula that is
// not on the server ranks the same scores through /rank.
const FORMULAS = ['weighted_sum', 'power_product', 'rank_position', 'expression'];
const play = {models: [], request: null, sides: [], number: 0};
const modelNow = () => play.models.find(model => model.name === $('model').value) || play.models[0];
function setUpPlayground(models) {
  play.models = models;
  const before = $('model').value;
  show('model', ...models.map(model => h('option', {}, model.name)));
  if (models.some(model => model.name === before)) $('model').value = before;
  if (models.length) loadExample(); else show('sides', h('p', {class: 'muted'}, 'The playground needs an active model.'));
}
async function loadExample() {
  const model = modelNow(), count = Math.max(1, Math.min(32, Number($('count').value) || 10));
  const response = await fetch(`/v1/models/${model.name}/example?candidates=${count}`).catch(() => null);
  if (!response || !response.ok) { show('playproblem', message('The example request could not be loaded.')); return; }
  const request = await response.json();
  delete request.ranking;
  play.request = request;
  $('request').value = JSON.stringify(request, null, 1).replace(/\n\s+(?=[-\d"\]])(?![^\n]*:)/g, ' ');
  const named = name => model.policies.find(policy => policy.name === name), own = named(model.default_policy);
  const others = model.policies.filter(policy => policy !== own), other = (own && own.shadow) || (others[others.length - 1] || own).name;
  play.sides = [makeSide('A', model, model.default_policy), makeSide('B', model, other)];
  arrange();
}
function makeSide(label, model, policy) {
  const side = {label, model, order: [], open: new Set()};
  side.select = h('select', {'aria-label': `Policy ${label}`, onchange: () => choose(side, side.select.value)}, model.policies.map(policy => h('option', {}, policy.name)));
  side.formulas = h('select', {'aria-label': `Formula ${label}`, onchange: () => chooseFormula(side, side.formulas.value)}, FORMULAS.map(formula => h('option', {value: formula}, formula.replace('_', ' '))));
  side.copy = h('button', {onclick: () => copyPolicy(side)}, 'Copy as policies.toml');
  side.reset = h('button', {onclick: () => choose(side, side.select.value)}, 'Reset');
  side.weights = h('div', {class: 'weights'});
  side.formula = h('div', {class: 'formula'});
  side.expression = h('input', {class: 'expression', spellcheck: 'false', hidden: true, 'aria-label': `Expression ${label}`, oninput: () => {
    side.policy.expression = side.expression.value;
    const names = [...new Set([...side.expression.value.matchAll(/\bw\.([A-Za-z_]\w*)/g)].map(match => match[1]))];
    side.policy.weights = Object.fromEntries(names.map(name => [name, side.set[name] ?? side.policy.weights[name] ?? 1]));
    side.set = {};
    drawWeights(side); describe(side); later();
  }});
  side.table = h('div', {class: 'scroll'}, h('p', {class: 'muted'}, 'scoring …'));
  side.node = h('div', {class: 'card', 'data-side': label},
    h('div', {class: 'controls'}, h('h3', {}, `Policy ${label}`), side.select, side.formulas, side.reset),
    h('div', {class: 'made'}, side.formula, side.copy), side.expression, side.weights, side.table);
  side.select.value = policy;
  choose(side, policy, false);
  return side;
}
function choose(side, name, send = true) {
  side.policy = side.model.policies.find(policy => policy.name === name);
  side.formulas.value = side.policy.formula;
  begin(side, false, send);
}
function chooseFormula(side, formula) {
  const own = side.model.policies.find(policy => policy.name === side.select.value), tasks = side.model.tasks.map(task => task.name);
  if (formula === own.formula) { choose(side, own.name); return; }
  const weights = Object.fromEntries(tasks.map(task => [task, own.weights[task] ?? 1]));
  side.policy = {name: own.name, formula, weights, bounds: Object.fromEntries(tasks.map(task => [task, [-1e6, 1e6]]))};
  if (formula === 'expression') side.policy.expression = tasks.map(task => `w.${task} * ${task}`).join(' + ');
  begin(side, true, true);
}
function begin(side, isTried, send) {
  side.isTried = isTried;
  side.set = {};
  side.expression.hidden = !(isTried && side.policy.formula === 'expression');
  side.expression.value = side.policy.expression || '';
  drawWeights(side);
  describe(side);
  if (send) score();
}
function drawWeights(side) {
  const {weights, bounds} = side.policy, names = [...new Set([...Object.keys(weights), ...(side.expression.hidden ? Object.keys(bounds) : [])])];
  side.weights.replaceChildren(...names.map(weight => {
    const own = weights[weight] || 0, any = side.isTried ? [-1e6, 1e6] : [own, own], [low, high] = bounds[weight] || any, free = high - low > 1e5;
    const from = free ? Math.min(0, 2 * own) : low, to = free ? Math.max(3, 2 * own) : high;
    const shown = h('b', {class: 'num'}, short(own)), fixed = low === high;
    const slider = h('input', {type: 'range', min: from, max: to, step: (to - from) / 100 || 1, value: own, disabled: fixed, 'aria-label': `Weight of ${weight}, policy ${side.label}`,
      oninput: () => { side.set[weight] = Number(slider.value); shown.textContent = short(side.set[weight]); describe(side); later(); }});
    return h('label', {title: fixed ? 'its bounds do not let a request set this weight' : null}, `${weight} `, shown, fixed ? ' (fixed)' : '', slider);
  }));
}
function describe(side) {
  const {formula, expression, multiplier} = side.policy, weights = {...side.policy.weights, ...side.set}, names = Object.keys(weights).filter(name => weights[name] !== 0);
  side.formula.textContent = 'rank score = ' + (formula === 'expression' ? expression
    : formula === 'weighted_sum' ? names.map(name => `${short(weights[name])}·${name}`).join(' + ')
    : formula === 'power_product' ? names.map(name => `${name}^${short(weights[name])}`).concat(multiplier || []).join(' × ')
    : names.map(name => `${short(weights[name])} / position(${name})`).join(' + '));
}
function policyToml({policy, set}) {
  const number = value => Number.isInteger(value) ? value.toFixed(1) : String(+value.toPrecision(6));
  const key = name => /^[A-Za-z0-9_-]+$/.test(name) ? name : JSON.stringify(name);
  const table = (entries, write) => `{ ${Object.entries(entries).map(([name, value]) => `${key(name)} = ${write(value)}`).join(', ')} }`;
  const out = [`[policy.${key(policy.name)}]`, `formula = "${policy.formula}"`];
  for (const field of ['expression', 'multiplier']) if (policy[field] != null) out.push(`${field} = ${JSON.stringify(policy[field])}`);
  out.push(`weights = ${table({...policy.weights, ...set}, number)}`);
  for (const field of ['alpha', 'beta']) if (policy[field] && Object.keys(policy[field]).length) out.push(`${field} = ${table(policy[field], number)}`);
  const bounds = Object.fromEntries(Object.entries(policy.bounds).filter(([, [low, high]]) => high - low < 1e6));
  if (Object.keys(bounds).length) out.push(`bounds = ${table(bounds, ([low, high]) => `[${number(low)}, ${number(high)}]`)}`);
  if (policy.shadow) out.push(`shadow = ${JSON.stringify(policy.shadow)}`);
  return out.join('\n') + '\n';
}
async function copyPolicy(side) {
  const text = policyToml(side), done = word => { side.copy.textContent = word; setTimeout(() => side.copy.textContent = 'Copy as policies.toml', 1500); };
  try { await navigator.clipboard.writeText(text); done('Copied'); } catch { window.prompt('Copy the policy:', text); }
}
const active = () => $('compare').checked ? play.sides : play.sides.slice(0, 1);
function arrange() {
  $('sides').classList.toggle('one', !$('compare').checked);
  show('sides', ...active().map(side => side.node));
  score();
}
let timer = 0;
function later() { clearTimeout(timer); timer = setTimeout(score, 60); }
async function post(url, body) {
  const headers = {'content-type': 'application/json'};
  if ($('key').value) headers.authorization = `Bearer ${$('key').value}`;
  const response = await fetch(url, {method: 'POST', headers, body: JSON.stringify(body)});
  return [response.status, await response.json()];
}
async function ask(side) {
  if (!side.isTried) {
    const ranking = {policy: side.policy.name, explain: true, ...(Object.keys(side.set).length ? {weights: side.set} : {})};
    return post(side.model.score_url, {...play.request, ranking});
  }
  const [status, scored] = await post(side.model.score_url, play.request);
  if (status !== 200) return [status, scored];
  const {formula, expression, weights} = side.policy, policy = {formula, weights: {...weights, ...side.set}};
  if (formula === 'expression') policy.expression = expression;
  const [done, ranked] = await post(side.model.score_url.replace(/score$/, 'rank'),
    {scores: scored.scores, policy, candidate_keys: candidateKeys(), explain: true});
  return [done, done === 200 ? {...scored, ...ranked} : ranked];
}
async function score() {
  const number = ++play.number;
  if (!play.request || !play.sides.length) return;
  let answers;
  try { answers = await Promise.all(active().map(ask)); }
  catch { answers = [[0, {title: 'The server does not answer', detail: 'the last result is shown'}]]; }
  if (number !== play.number) return;  // a newer request is under way
  const [status, problem] = answers.find(([code]) => code !== 200) || [];
  if (status === 401) $('keyfield').hidden = false;
  if (problem) {
    const details = problem.errors ? problem.errors.map(error => `${error.pointer} ${error.detail}`) : [problem.detail];
    show('playproblem', h('div', {class: 'message'}, h('b', {}, problem.title), details.map(detail => h('div', {}, detail))));
    return;
  }
  show('playproblem');
  active().forEach((side, i) => { side.answer = answers[i][1]; });
  active().forEach(drawSide);
  drawAgreement();
}
function candidateKeys() {  // of the request; undefined if positions stand for them
  const sent = play.request.candidates, areKeys = Array.isArray(sent) && typeof sent[0] !== 'object';
  return play.request.candidate_keys || (areKeys ? sent : undefined);
}
function drawSide(side) {
  const {answer} = side, keys = candidateKeys() || answer.rank_score.map((_, i) => i), tasks = Object.keys(answer.scores);
  const why = new Map(answer.explanation.candidates.map(candidate => [String(candidate.candidate), candidate]));
  const most = Object.fromEntries(tasks.map(task => [task, Math.max(...answer.scores[task], 1e-12)]));
  const old = new Map([...side.table.querySelectorAll('tr[data-key]')].map(row => [row.dataset.key, row.getBoundingClientRect().top]));
  const first = side.label === 'B' ? play.sides[0].order : [];
  side.order = answer.ranking;
  const rows = answer.ranking.flatMap((key, position) => {
    const i = keys.indexOf(key), moved = first.length ? first.indexOf(key) - position : 0, name = String(key), candidate = why.get(name), open = side.open.has(name);
    const button = h('button', {class: 'link', 'aria-expanded': String(open), title: 'how its rank score is made', onclick: () => { if (!side.open.delete(name)) side.open.add(name); drawSide(side); side.table.querySelector(`tr[data-key="${CSS.escape(name)}"] button`).focus(); }}, name);
    const row = h('tr', {'data-key': key}, h('td', {}, position + 1, moved ? h('span', {class: `moved ${moved > 0 ? 'good' : 'bad'}`, title: 'places compared with policy A'}, ` ${moved > 0 ? '▲' : '▼'}${Math.abs(moved)}`) : ''),
      h('td', {}, button), tasks.map((task, column) => {
        const value = answer.scores[task][i], lead = candidate && candidate.tasks[task] && candidate.tasks[task].lead;
        return h('td', {}, h('div', {class: 'bar'}, h('i', {style: `width:${100 * value / most[task]}%;background:${color(column)}`})), h('span', {class: 'num'}, short(value)),
          lead == null ? '' : h('span', {class: `lead num ${lead >= 0 ? 'good' : 'bad'}`}, ' ' + signed(lead)));
      }), h('td', {}, short(answer.rank_score[i])));
    return open && candidate ? [row, detail(candidate, tasks.length + 3, answer.policy.formula)] : [row];
  });
  side.table.replaceChildren(h('table', {}, head('#', 'candidate', ...tasks, 'rank score'), h('tbody', {}, rows)));
  if (matchMedia('(prefers-reduced-motion: reduce)').matches) return;
  for (const row of rows) {
    const from = old.get(row.dataset.key), by = from == null ? 0 : from - row.getBoundingClientRect().top;
    if (Math.abs(by) > 1) row.animate([{transform: `translateY(${by}px)`}, {transform: 'none'}], {duration: 250, easing: 'ease-out'});
  }
}
function detail(candidate, columns, formula) {
  const parts = Object.entries(candidate.tasks).concat(candidate.multiplier ? [['multiplier', candidate.multiplier]] : []);
  const total = formula === 'power_product' ? 'logarithm of the rank score' : 'rank score';
  return h('tr', {class: 'detail', 'data-detail': candidate.candidate}, h('td', {colspan: columns}, h('table', {}, head('', 'score', 'calibrated', 'share', 'ahead of the mean by'),
    h('tbody', {}, parts.map(([name, part]) => h('tr', {}, h('td', {}, name), h('td', {}, short(part.raw)), h('td', {}, short(part.calibrated)), h('td', {}, signed(part.share)), h('td', {class: part.lead >= 0 ? 'good' : 'bad'}, signed(part.lead)))),
      candidate.remainder ? h('tr', {}, h('td', {}, 'remainder'), h('td', {}), h('td', {}), h('td', {}, signed(candidate.remainder)), h('td', {})) : null,
      h('tr', {}, h('td', {colspan: 3}, total), h('td', {}, short(candidate.total)), h('td', {}))))));
}
function drawAgreement() {
  if (!$('compare').checked) { $('agreement').textContent = ''; return; }
  const [a, b] = play.sides.map(side => side.order), at = new Map(b.map((key, i) => [key, i]));
  let agree = 0, pairs = 0;
  for (let i = 0; i < a.length; i++) for (let j = i + 1; j < a.length; j++) { pairs++; agree += at.get(a[i]) < at.get(a[j]) ? 1 : -1; }
  const k = Math.min(10, a.length), best = new Set(b.slice(0, k)), same = a.slice(0, k).filter(key => best.has(key)).length;
  $('agreement').textContent = pairs ? `A and B agree with Kendall's tau ${(agree / pairs).toFixed(2)}; ${same} of the best ${k} are the same.` : '';
}
$('model').onchange = loadExample;
$('count').onchange = loadExample;
$('compare').onchange = arrange;
$('key').onchange = score;
$('request').oninput = () => {
  try { play.request = JSON.parse($('request').value); later(); }
  catch (error) { show('playproblem', message(`The request is not JSON: ${error.message}`)); }
};
