// Rows that hold what is searched for stay; a notebook's link then leads to the product's first mention.
const search = document.querySelector('.search');
const box = search.querySelector('input');
const rows = [...document.querySelectorAll('tr[data-words]')];
search.hidden = false;
box.addEventListener('input', () => {
  const wanted = box.value.trim().toLowerCase();
  const counts = { notebooks: 0, figures: 0 };
  for (const row of rows) {
    const named = row.dataset.words.toLowerCase().includes(wanted);
    const link = row.querySelector('a');
    row.hidden = !named && !row.textContent.toLowerCase().includes(wanted);
    if (link) link.hash = wanted && named ? `:~:text=${encodeURIComponent(wanted)}` : '';
    counts[link ? 'notebooks' : 'figures'] += !row.hidden;
  }
  const told = `${counts.notebooks} notebooks and ${counts.figures} products`;
  search.querySelector('output').textContent = wanted ? told : '';
});
