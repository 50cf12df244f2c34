// Which variant to ship at other limits: the rule and the sentences of verdict.py, of the figures and words that asked.py writes.
function decide(asked, at) {
  const [drop, dropText] = asked.drop[at.drop], [latency, latencyText] = asked.latency[at.latency], [size, sizeText] = asked.size[at.size];
  const rows = asked.rows.map((row, index) => {
    const broken = [];
    let excess = 0;
    const against = (factor, told) => { excess = Math.max(excess, factor); if (factor > 1) broken.push(told); };
    if (row.lost > drop) broken.push(`${row.loses}, ${dropText} are allowed`);
    if (latency !== null) against(row.p50 * 1e3 / latency, `takes ${row.ms}, ${latencyText} ms are allowed`);
    if (size !== null) against(row.bytes / size, `takes ${row.size}, ${sizeText} are allowed`);
    broken.push(...row.memory);
    const proved = row.bound <= drop;
    return { ...row, index, broken, excess: Math.max(excess, row.excess), proved, change: row.change[+proved], unproved: row.unproved[at.drop] };
  });
  const within = rows.filter(row => !row.broken.length);
  const chosen = choose(within.filter(row => row.proved || at.accept)), best = choose(within);
  const unproved = best !== chosen ? best : null;
  return {
    ship: chosen ? chosen.name : null,
    headline: headline(asked, rows, chosen, unproved, drop),
    reasons: rows.filter(row => row !== chosen).map(row => reason(row, chosen)),
  };
}

// The first of those for which each key is the least, one after the other.
function least(rows, ...keys) {
  return rows.reduce((best, row) => {
    for (const key of best ? keys : [])
      if (key(row) !== key(best)) return key(row) < key(best) ? row : best;
    return best || row;
  }, null);
}

function choose(allowed) {
  const faster = allowed.filter(row => !row.isBaseline && row.faster);
  if (faster.length) {
    const fastest = least(faster, row => row.p50);
    return least(faster.filter(row => row.asFastAs[fastest.index]), row => row.bytes, row => row.elsewhere, row => row.p50);
  }
  return allowed.find(row => row.isBaseline) || least(allowed, row => row.p50);
}

function headline(asked, rows, chosen, unproved, drop) {
  let waits = unproved ? ` \`compress report --accept-unproved\` ships ${unproved.name}: ${unproved.file}.` : "";
  if (!chosen) {
    if (unproved) return `Ship nothing yet: no variant is proved to keep the limits. ${unproved.name} is ${unproved.unproved}.${waits}`;
    const nearest = least(rows, row => row.lost > drop, row => row.excess);
    return `Ship nothing yet: no variant keeps the limits. Nearest is ${nearest.name}: it ${nearest.broken.join(" and ")}.`;
  }
  const baseline = asked.baseline, file = ` The file: ${chosen.file}.`;
  const accepted = chosen.proved ? "" : ` It is ${chosen.unproved}; that was accepted.`;
  if (!chosen.isBaseline) {
    const own = rows.find(row => row.isBaseline), broken = own ? own.broken : ["runs where no file ships"];
    const told = chosen.faster
      ? `Ship ${chosen.name}: it is faster than ${baseline} (${chosen.doubtful}), ${chosen.change}.`
      : `Ship ${chosen.name} for the limits, not for speed (${chosen.doubtful} against ${baseline}): ${baseline} ` +
        `${broken.join(" and ")}. ${chosen.name} takes ${chosen.ms} and ${chosen.change}.`;
    if (unproved) waits = ` ${unproved.name} ${unproved.speed}, but ${unproved.unproved}.${waits}`;
    return told + accepted + file + waits;
  }
  if (unproved)
    return `Ship ${baseline}: nothing faster is proved. ${unproved.name} is faster (${unproved.doubtful}), but ` +
      `${unproved.unproved}.${waits} The file of ${baseline}: ${chosen.file}.`;
  const others = rows.filter(row => !row.isBaseline);
  if (!others.length) return `Ship ${baseline}: nothing else was measured that ships.${file}`;
  return keep(chosen, others, least(others, row => -row.speedup)) + file;
}

function keep(baseline, others, best) {
  let said;
  if (others.every(row => row.slower))
    said = `${best.name} is slower here (${best.doubtful})` + (others.length === 1 ? "" : ", and the others more so");
  else {
    said = (best.faster ? "" : "no variant is clearly faster; ") + `${best.name} ${best.speed.replace(best.times, () => best.doubtful)}`;
    said = [said, ...best.broken].join(" but ");
  }
  const told = `Ship ${baseline.name}: ${said}.`;
  const smaller = least(others.filter(row => !row.broken.length && row.bytes < baseline.bytes && !row.slower), row => row.bytes);
  if (!smaller) return told;
  return `${told} If size counts more, take ${smaller.name}: it ${smaller.change}, and it is not clearly slower (${smaller.times})` +
    (smaller.proved ? `: ${smaller.file}.` : `, but it is ${smaller.unproved}: ${smaller.file}.`);
}

function reason(row, chosen) {
  if (row.broken.length) return `${row.name}: not chosen, it ${row.broken.join(" and ")}.`;
  if (row.isBaseline) return `${row.name}: the baseline, ${row.ms}.`;
  if (row.faster && !row.proved && (!chosen || chosen.proved)) return `${row.name}: not chosen, it ${row.speed} and ${row.unproved}.`;
  if (!row.faster) return `${row.name}: not chosen, it ${row.speed}.`;
  const larger = chosen && row.bytes > chosen.bytes && chosen.asFastAs[row.index];
  return `${row.name}: not chosen, it ${row.speed}, but ` +
    (larger ? `not clearly faster than ${chosen.name}, and larger.` : `its ${row.ms} are not the least.`);
}
