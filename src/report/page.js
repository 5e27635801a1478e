// Time plots: a vertical line under the pointer, and the values there, read from the paths.
const si = v => {
  if (v && Math.abs(v) < 1e-3) return v.toExponential(2);
  const unit = [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']].find(([u]) => Math.abs(v) >= u) || [1, ''];
  return String(+(v / unit[0]).toPrecision(3)).replace('-', '−') + unit[1];
};
// Runs of [x, y, y below]: the path of a band is its upper edge, then its lower edge in reverse.
const runs = path => path.getAttribute('d').split('M').slice(1).map(run => {
  let x = 0, y = 0;
  const points = run.split('l').map(step => {
    const [dx, dy] = step.match(/-?\d+/g).map(Number);
    return [x += dx, y += dy];
  });
  const half = points.length / 2;
  return run.endsWith('z') ? points.slice(0, half).map(([x, y], i) => [x, y, points[2 * half - 1 - i][1]]) : points;
});
for (const timeline of document.querySelectorAll('.timeline')) {
  const { from, to } = timeline.dataset;
  const plots = [...timeline.querySelectorAll('figure')].map(figure => {
    const { low, high, log } = figure.querySelector('.plot').dataset;
    const scale = log ? [Math.log(low), Math.log(high)] : [+low, +high];
    const value = y => si((v => log ? Math.exp(v) : v)(scale[1] + (scale[0] - scale[1]) * y / 1000));
    let read;
    return { out: figure.querySelector('output'), value, at: x => {
      const path = figure.querySelector('.data path');
      read ??= path ? runs(path) : [];
      const run = read.find(run => run[0][0] <= x && x <= run.at(-1)[0]);
      return run?.findLast(point => point[0] <= x);
    } };
  });
  timeline.addEventListener('pointermove', event => {
    const box = timeline.querySelector('.plot').getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const inside = share >= 0 && share <= 1;
    timeline.classList.toggle('reading', inside);
    if (!inside) return;
    timeline.style.setProperty('--at', `${event.clientX - timeline.getBoundingClientRect().left}px`);
    const time = new Date(+from + share * (to - from)).toISOString().slice(0, 16).replace('T', ' ');
    timeline.querySelector('.axis output').textContent = time;
    for (const { out, value, at } of plots) {
      const [, y, below = y] = at(1e4 * share) || [];
      out.textContent = y === undefined ? '–' : value(y) === value(below) ? value(y) : `${value(below)} to ${value(y)}`;
    }
  });
  timeline.addEventListener('pointerleave', () => timeline.classList.remove('reading'));
}
