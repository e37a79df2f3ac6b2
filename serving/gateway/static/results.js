// What a model answered, as people read it.

import { el, number, percent } from "./dom.js";

const score = (value) => number(value, 4);

/** The cosine of each pair of vectors. */
export function cosines(vectors) {
  const lengths = vectors.map((vector) => Math.hypot(...vector) || 1);
  const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
  return vectors.map((a, i) => vectors.map((b, j) => dot(a, b) / (lengths[i] * lengths[j])));
}

function matrix(answer, body) {
  const texts = body.input;
  const values = cosines(answer.data.map((entry) => entry.embedding));
  const names = texts.map((_, index) => String(index + 1));
  const head = el("tr", {}, el("th", { scope: "col" }, "Text"), ...names.map((name) => el("th", { scope: "col", class: "figure" }, name)));
  const rows = values.map((line, row) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("span", { class: "place" }, names[row]), ` ${texts[row]}`),
      ...line.map((value) =>
        el("td", { class: "figure heat", vars: { "--heat": `${Math.max(0, value) * 50}%` } }, value.toFixed(3)),
      ),
    ),
  );
  const caption = el("caption", {}, "Similarity: the cosine of the vectors. 1 is the same direction.");
  const width = answer.data[0].embedding.length;
  return [
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Similarity of the texts" }, el("table", { class: "matrix" }, caption, el("thead", {}, head), el("tbody", {}, ...rows))),
    el("p", { class: "muted" }, `${number(width)} components each, ${number(answer.usage.prompt_tokens)} tokens read.`),
  ];
}

function ranking(answer, body) {
  const entries = answer.results.map((result) =>
    el("li", {}, el("span", {}, body.documents[result.index]), el("span", { class: "figure muted" }, score(result.relevance_score))),
  );
  return [el("ol", { class: "ranked", "aria-label": "Documents, the best first" }, ...entries)];
}

function bars(labels) {
  const rows = labels.slice(0, 10).map(({ label, score: value }) => {
    const share = value >= 0 && value <= 1;
    const shown = share ? percent(value) : score(value);
    const bar = el("span", { class: "bar-track", "aria-hidden": "true" }, el("span", { class: "bar-fill", vars: { "--share": share ? String(value) : "0" } }));
    return el("li", {}, el("span", { class: "bar-name" }, label), bar, el("span", { class: "figure" }, shown));
  });
  const rest = labels.length - rows.length;
  return [
    el("ul", { class: "bars" }, ...rows),
    rest > 0 ? el("p", { class: "muted" }, `and ${rest} more`) : null,
  ];
}

/** A text with its entities marked; their places are counted in characters, not in UTF-16. */
function marked(text, entities) {
  const letters = Array.from(text);
  const cut = (start, end) => letters.slice(start, end).join("");
  const parts = [];
  let place = 0;
  for (const entity of entities) {
    if (entity.start < place) continue;
    parts.push(cut(place, entity.start));
    parts.push(el("mark", {}, cut(entity.start, entity.end), " ", el("small", {}, entity.label)));
    place = entity.end;
  }
  return el("p", { class: "marked" }, ...parts, cut(place));
}

function row(entry, asked) {
  if (entry.labels) return bars(entry.labels);
  if (entry.entities) return [marked(asked ?? "", entry.entities)];
  if (entry.prediction) return [el("p", { class: "big figure" }, entry.prediction.map((value) => number(value, 6)).join(", "))];
  if (entry.answer !== undefined) {
    return [
      el("p", { class: "big" }, entry.answer || "The text does not say."),
      el("p", { class: "muted" }, `Probability ${percent(entry.score)}; that there is no answer: ${percent(entry.no_answer)}.`),
    ];
  }
  if (entry.text !== undefined) {
    return [el("p", { class: "big" }, entry.text), el("p", { class: "muted" }, `${number(entry.output_tokens)} tokens`)];
  }
  return [el("pre", {}, JSON.stringify(entry, null, 2))];
}

function several(answer, body) {
  const texts = Array.isArray(body.input) ? body.input : [];
  return answer.data.map((entry) => {
    const asked = texts[entry.index];
    const heading = asked !== undefined && !entry.entities ? el("h3", {}, asked) : null;
    return el("div", { class: "answer" }, heading, ...row(entry, asked));
  });
}

/** The elements that show an answer to a request. */
export function shown(path, answer, body) {
  if (path === "/v1/embeddings") return matrix(answer, body);
  if (path === "/v1/rerank") return ranking(answer, body);
  if (Array.isArray(answer.data)) return several(answer, body);
  return [el("pre", {}, JSON.stringify(answer, null, 2))];
}
