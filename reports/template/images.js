// The page of all pictures. What is chosen stands in the address, so that a link opens what its sender saw.
const content = JSON.parse(document.querySelector('#content').textContent);
const texts = [...document.querySelectorAll('.part')];
const parts = [];
const form = document.querySelector('.choices');
const gallery = document.querySelector('.gallery');
const dialog = document.querySelector('dialog');
const STEP = 48;
const MAGMA = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const WORDS = { escape: 'escape', alarm: 'false alarm', found: 'defect found', passed: 'good, passed', none: 'not judged' };

// The place of each image within its category, where its picture lies.
const counted = content.categories.map(() => 0);
content.images.forEach((image, number) => {
  image.number = number;
  image.place = counted[image.category]++;
});

function part(category) {
  parts[category] ??= JSON.parse(texts[category].textContent);
  return parts[category];
}

function bytes(text) {
  return Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
}

function fill(select, values, first) {
  const options = first === undefined ? values : [['', first], ...values];
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

// ---------------------------------------------------------------- judgements

const goods = content.scores.map(scores => content.categories.map((_, category) => content.images
  .filter(image => image.category === category && !image.label && scores[image.number] !== null)
  .map(image => scores[image.number]).sort((a, b) => a - b)));

function threshold(method, category, rate) {
  const values = goods[method][category];
  return values.length ? values[values.length - 1 - Math.min(Math.floor(rate * values.length + 1e-9), values.length - 1)] : null;
}

function judge(method, image, limits) {
  const score = content.scores[method][image.number];
  const limit = limits[method][image.category];
  if (score === null || limit === null) return 'none';
  if (image.label) return score > limit ? 'found' : 'escape';
  return score > limit ? 'alarm' : 'passed';
}

// How far a score lies on the wrong side, in standard deviations of its product's good pictures: products share no scale.
const spreads = goods.map(categories => categories.map(values => {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length) || 1;
}));

function margin(method, image, limits) {
  const distance = content.scores[method][image.number] - limits[method][image.category];
  return (image.label ? -distance : distance) / spreads[method][image.category];
}

// ---------------------------------------------------------------- pictures

function drawMap(method, image, size) {
  const text = part(image.category).maps[method][image.place];
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = content.cells;
  canvas.style.width = canvas.style.height = `${size}px`;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', text ? `map of ${content.methods[method]}` : `${content.methods[method]} has no map`);
  if (!text) return canvas;
  const pixels = new ImageData(content.cells, content.cells);
  bytes(text).forEach((value, cell) => {
    const position = value / 255 * (MAGMA.length - 1);
    const low = Math.min(Math.floor(position), MAGMA.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      pixels.data[4 * cell + channel] = MAGMA[low][channel] + (position - low) * (MAGMA[low + 1][channel] - MAGMA[low][channel]);
    }
    pixels.data[4 * cell + 3] = 255;
  });
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

function drawOutline(text, width, height) {
  const side = content.maskCells;
  const packed = bytes(text);
  const covered = (row, column) => row >= 0 && column >= 0 && row < side && column < side
    && (packed[(row * side + column) >> 3] >> (7 - (row * side + column) % 8)) & 1;
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext('2d');
  pen.strokeStyle = '#ff2d55';
  pen.lineWidth = 2;
  pen.beginPath();
  for (let row = 0; row <= side; row++) {
    for (let column = 0; column <= side; column++) {
      const [x, y, right, below] = [column, row, column + 1, row + 1].map((value, k) => value / side * (k % 2 ? height : width));
      if (Boolean(covered(row, column)) !== Boolean(covered(row - 1, column))) { pen.moveTo(x, y); pen.lineTo(right, y); }
      if (Boolean(covered(row, column)) !== Boolean(covered(row, column - 1))) { pen.moveTo(x, y); pen.lineTo(x, below); }
    }
  }
  pen.stroke();
  return canvas;
}

function drawPicture(image, size) {
  const box = document.createElement('span');
  const { pictures, masks } = part(image.category);
  box.className = 'picture';
  if (!pictures[image.place]) {
    box.textContent = 'picture left out';
    return box;
  }
  const picture = new Image();
  picture.alt = `${content.categories[image.category]}, ${image.label ? image.defect : 'good'}`;
  picture.src = `data:image/webp;base64,${pictures[image.place]}`;
  picture.style.height = `${size}px`;
  box.append(picture);
  if (masks[image.place] && form.outline.checked) {
    picture.decode().then(() => {
      box.append(drawOutline(masks[image.place], size * picture.naturalWidth / picture.naturalHeight, size));
    });
  }
  return box;
}

// ---------------------------------------------------------------- what is chosen

let chosen = [];
let limits = [];
let shown = STEP;

function methods() {
  const second = form.second.value;
  return [Number(form.first.value), ...(second === '' ? [] : [Number(second)])];
}

function describe(image) {
  const lines = methods().map(method => {
    const [score, limit] = [content.scores[method][image.number], limits[method][image.category]];
    const words = WORDS[judge(method, image, limits)];
    return `${methods().length > 1 ? `${content.methods[method]}: ` : ''}${words}, ${score === null ? 'no score' : score.toFixed(3)}`
      + (limit === null ? '' : ` (limit ${limit.toFixed(3)})`);
  });
  return [`${content.categories[image.category]}, ${image.label ? image.defect : 'good'}`, ...lines];
}

function card(image, position) {
  const button = document.createElement('button');
  const outcome = judge(methods()[0], image, limits);
  button.type = 'button';
  button.className = `card ${outcome}`;
  button.append(drawPicture(image, 104), ...methods().map(method => drawMap(method, image, 104)));
  for (const text of describe(image)) {
    const line = document.createElement('span');
    line.textContent = text;
    button.append(line);
  }
  button.addEventListener('click', () => open(position));
  return button;
}

function choose() {
  const rate = Number(form.rate.value) / 100;
  form.share.value = `${form.rate.value} %`;
  limits = content.scores.map((_, method) => content.categories.map((_, category) => threshold(method, category, rate)));
  const [first, second] = methods();
  const fits = content.images.filter(image => (form.category.value === '' || image.category === Number(form.category.value))
    && (form.level.value === '' || image.level === form.level.value)
    && (form.defect.value === '' || image.class === form.defect.value || (form.defect.value === 'good' && !image.label)));
  document.querySelector('.counts tbody').replaceChildren(...methods().map(method => {
    const row = document.createElement('tr');
    const outcomes = fits.map(image => judge(method, image, limits));
    const heads = [content.methods[method], ...['found', 'escape', 'passed', 'alarm'].map(kind => outcomes.filter(word => word === kind).length)];
    row.append(...heads.map((text, column) => {
      const cell = document.createElement(column ? 'td' : 'th');
      if (column) cell.className = 'num'; else cell.scope = 'row';
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
  const wanted = { escape: ['escape'], alarm: ['alarm'], wrong: ['escape', 'alarm'], right: ['found', 'passed'] }[form.outcome.value];
  chosen = fits.filter(image => {
    const outcome = judge(first, image, limits);
    if (form.outcome.value === 'differ') return second !== undefined && judge(second, image, limits) !== outcome;
    return !wanted || wanted.includes(outcome);
  });
  const score = image => content.scores[first][image.number] ?? -Infinity;
  const orders = {
    margin: (a, b) => margin(first, b, limits) - margin(first, a, limits),
    high: (a, b) => score(b) - score(a),
    low: (a, b) => score(a) - score(b),
    name: (a, b) => a.number - b.number,
  };
  chosen.sort(orders[form.order.value]);
  shown = STEP;
  show();
}

function show() {
  const drawn = gallery.children.length && gallery.dataset.choice === address() ? gallery.children.length : 0;
  const cards = chosen.slice(drawn, shown).map((image, place) => card(image, drawn + place));
  if (drawn) gallery.append(...cards); else gallery.replaceChildren(...cards);
  gallery.dataset.choice = address();
  document.querySelector('.shown').textContent = `${Math.min(shown, chosen.length)} of ${chosen.length} pictures shown, ${content.images.length} in all${content.pictures < content.images.length ? `, of which the ${content.pictures} farthest on the wrong side have their picture here` : ''}`;
  document.querySelector('.more').hidden = shown >= chosen.length;
  if (!dialog.open) history.replaceState(null, '', `#${address()}`);
}

function address() {
  const fields = [...new FormData(form)].filter(([, value]) => value !== '');
  return new URLSearchParams(fields).toString();
}

let position = 0;

function open(place) {
  position = Math.max(0, Math.min(place, chosen.length - 1));
  const image = chosen[position];
  const detail = dialog.querySelector('.detail');
  const title = document.createElement('p');
  title.textContent = `${image.name}${image.class ? `, ${image.class}` : ''}${image.level ? `, ${image.level} contrast` : ''}`;
  const lines = describe(image).map(text => Object.assign(document.createElement('p'), { textContent: text }));
  detail.replaceChildren(drawPicture(image, 320), ...methods().map(method => drawMap(method, image, 320)), title, ...lines);
  const link = `#${address()}&picture=${image.number}`;
  dialog.querySelector('.link').href = link;
  history.replaceState(null, '', link);
  if (!dialog.open) dialog.showModal();
}

// ---------------------------------------------------------------- start

fill(form.first, content.methods.map((name, number) => [number, name]));
fill(form.second, content.methods.map((name, number) => [number, name]), 'none');
fill(form.category, content.categories.map((name, number) => [number, name]), 'all');
const classes = [...new Set(content.images.map(image => image.class).filter(Boolean))].sort();
fill(form.defect, [['good', 'good'], ...classes.map(name => [name, name])], 'all');
fill(form.level, ['low', 'medium', 'high'].map(name => [name, name]), 'all');

function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.size) form.outline.checked = asked.has('outline');
  for (const [name, value] of asked) {
    const field = form.elements[name];
    if (!field || field.type === 'checkbox') continue;
    field.value = value;
    if (field.selectedIndex === -1) field.selectedIndex = 0;
  }
  const picture = asked.get('picture');
  choose();
  const place = chosen.findIndex(image => image.number === Number(picture));
  if (picture !== null && place >= 0) open(place);
}

form.addEventListener('input', choose);
form.addEventListener('submit', event => event.preventDefault());
document.querySelector('.more').addEventListener('click', () => { shown += STEP; show(); });
dialog.querySelector('.close').addEventListener('click', () => dialog.close());
dialog.querySelector('.previous').addEventListener('click', () => open(position - 1));
dialog.querySelector('.next').addEventListener('click', () => open(position + 1));
dialog.addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft') open(position - 1);
  if (event.key === 'ArrowRight') open(position + 1);
});
dialog.addEventListener('close', () => history.replaceState(null, '', `#${address()}`));
window.addEventListener('hashchange', restore);
restore();
