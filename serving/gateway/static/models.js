// The models: their list, and what is known of each.

import { el, number, percent, size } from "./dom.js";

const EMBEDDING = "sentence-similarity";
const WORDS = {
  "text-generation": "text",
  "sentence-similarity": "embeddings",
  "text-ranking": "ranking",
};

/** What a task is called in few words. */
export const taskName = (task) => WORDS[task] ?? (task.replaceAll("-", " ") || "unknown task");

/** The address of a model's part of the page. */
export const hashOf = (model) => `#${encodeURIComponent(model.id)}`;

/** A link to a model, for the list. */
export function link(model, current) {
  const { task, precision } = model.shoal;
  return el(
    "li",
    {},
    el(
      "a",
      { href: hashOf(model), "aria-current": current ? "page" : null },
      el("span", { class: "name" }, model.id),
      el("span", { class: "muted" }, [taskName(task), precision].filter(Boolean).join(" · ")),
    ),
  );
}

/** The evidence of a model as pairs of a heading and a figure, with what the figure is of its task. */
export function evidenceOf({ task, evidence }) {
  const told = [];
  const add = (heading, text, more) => told.push({ heading, text, more });
  const { perplexity, reference_perplexity: original } = evidence;
  if (evidence.size_bytes !== undefined) add("Size of the network", size(evidence.size_bytes));
  if (perplexity !== undefined) {
    const rise = original ? perplexity / original - 1 : 0;
    const more = original ? `original ${number(original)}, ${rise < 0 ? "−" : "+"}${percent(Math.abs(rise), 2)}` : "";
    add("Perplexity", number(perplexity), more);
  }
  if (evidence.metric) {
    const value = evidence.score ?? evidence.value;
    const reference = evidence.reference_score ?? evidence.reference_value;
    if (value !== undefined) add(evidence.metric, number(value, 4), reference === undefined ? "" : `original ${number(reference, 4)}`);
  }
  if (evidence.min_cosine !== undefined) {
    const more = evidence.mean_cosine === undefined ? "" : `mean ${number(evidence.mean_cosine, 5)}`;
    add("Least cosine to the original", number(evidence.min_cosine, 5), more);
  }
  if (evidence.agreement !== undefined) {
    const similar = "Spearman's correlation to the original";
    if (task === EMBEDDING) add("Order of similarities", number(evidence.agreement, 4), similar);
    else add("Answers as the original", percent(evidence.agreement, 2));
  }
  if (evidence.batch_invariance !== undefined) {
    const [shown, of] = invariance(task, evidence.batch_invariance);
    add("Alone and in a batch", shown, of);
  }
  return told;
}

/** How equal a row's answer is alone and in a batch, which each family measures in its own way. */
function invariance(task, value) {
  if (["text-generation", "text2text-generation"].includes(task)) return [percent(value), "of the answers are the same"];
  if (task.startsWith("tabular-")) return [value ? value.toExponential(1) : "0", "largest difference"];
  return [number(value, 5), task === EMBEDDING ? "least cosine" : "1 less the largest difference"];
}

function tensors(title, given) {
  const rows = Object.entries(given).map(([name, { dtype, dims, optional }]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", {}, dtype),
      el("td", {}, dims.length ? `[${dims.map((dim) => (dim < 0 ? "any" : dim)).join(", ")}]` : "[]"),
      el("td", { class: "muted" }, optional ? "optional" : ""),
    ),
  );
  return el("table", {}, el("caption", {}, title), el("tbody", {}, ...rows));
}

/** What is known of a model: how its version was proven, and what goes in and out. */
export function about(model) {
  const { shoal } = model;
  const facts = [
    { heading: "Precision", text: shoal.precision || "not known", more: `version ${shoal.version}` },
    ...evidenceOf(shoal),
  ];
  if (model.max_model_len) facts.push({ heading: "Context", text: number(model.max_model_len), more: "tokens" });
  const tiles = facts.map(({ heading, text, more }) =>
    el("div", { class: "tile" }, el("dt", {}, heading), el("dd", {}, el("b", {}, text), more ? el("span", { class: "muted" }, more) : null)),
  );
  const rest = [
    shoal.source ? `Made from ${shoal.source}.` : "",
    model.created ? `Exported on ${new Date(model.created * 1000).toISOString().slice(0, 10)}.` : "",
    `Fingerprint ${shoal.fingerprint}.`,
    Object.keys(shoal.evidence).length ? "" : "No evidence: this version was not exported by Shoal.",
  ].filter(Boolean);
  const wire = el("details", {}, el("summary", {}, "Inputs and outputs in Triton"), el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Inputs and outputs" }, tensors("Inputs", shoal.inputs), tensors("Outputs", shoal.outputs)));
  return el(
    "section",
    { class: "card", "aria-labelledby": "about-title" },
    el("h2", { id: "about-title" }, "How it was proven"),
    el("dl", { class: "tiles" }, ...tiles),
    el("p", { class: "muted fold" }, rest.join(" ")),
    wire,
  );
}
