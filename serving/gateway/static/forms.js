// What each task is asked, and how a form becomes the body of a request.

import { FILE } from "./code.js";

const SAMPLES = [
  "Fish swim in shoals to be safe.",
  "A group of fish moves as one.",
  "The stock market fell on Monday.",
];

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const input = { name: "input", label: "Texts, one a line", kind: "lines", value: SAMPLES.slice(0, 2).join("\n") };

const TASKS = {
  "sentence-similarity": {
    path: "/v1/embeddings",
    title: "Compare texts",
    run: "Compare",
    fields: (model) => {
      const prompts = Object.keys(model.shoal.prompts);
      const texts = { ...input, value: SAMPLES.join("\n") };
      const choice = { name: "prompt_name", label: "Prompt", kind: "choice", options: ["", ...prompts], value: "" };
      return prompts.length ? [texts, choice] : [texts];
    },
  },
  "text-ranking": {
    path: "/v1/rerank",
    title: "Rank documents",
    run: "Rank",
    fields: () => [
      { name: "query", label: "Query", kind: "line", value: "Why do fish swim together?" },
      { name: "documents", label: "Documents, one a line", kind: "lines", value: SAMPLES.join("\n") },
    ],
  },
  "text-classification": {
    path: "/v1/classify",
    title: "Classify texts",
    run: "Classify",
    fields: () => [{ ...input, value: "I love this.\nThis was a waste of time." }],
  },
  "zero-shot-classification": {
    title: "Choose among labels",
    run: "Classify",
    fields: () => [
      { ...input, value: SAMPLES[2] },
      { name: "candidate_labels", label: "Labels, separated by commas", kind: "words", value: "nature, finance, sport" },
    ],
  },
  "token-classification": {
    title: "Find names",
    run: "Find",
    fields: () => [{ ...input, value: "Ada Lovelace was born in London." }],
  },
  "question-answering": {
    title: "Answer from a text",
    run: "Answer",
    fields: () => [
      { name: "question", label: "Question", kind: "line", value: "Where was Ada Lovelace born?" },
      { name: "context", label: "Text", kind: "text", value: "Ada Lovelace was born in London in 1815." },
    ],
  },
  "fill-mask": {
    title: "Fill the gap",
    run: "Fill",
    hint: "The gap is <mask> or [MASK], as the model's tokenizer writes it.",
    fields: () => [{ ...input, value: "Fish swim in the [MASK]." }],
  },
  "image-classification": {
    title: "Classify a picture",
    run: "Classify",
    fields: () => [{ name: "image", label: "PNG or JPEG file", kind: "file" }],
  },
  "text2text-generation": {
    title: "Rewrite texts",
    run: "Rewrite",
    fields: () => [
      { ...input, value: SAMPLES[0] },
      { name: "max_new_tokens", label: "Most tokens", kind: "number", value: "64" },
    ],
  },
  "tabular-classification": { title: "One row of a table", run: "Predict", fields: columns, body: row },
  "tabular-regression": { title: "One row of a table", run: "Predict", fields: columns, body: row },
};

/** A field for each number of a row, or for each column by its name. */
function columns(model) {
  const inputs = Object.entries(model.shoal.inputs);
  if (inputs.length === 1 && inputs[0][0] === "features") {
    const width = Math.max(1, ...inputs[0][1].dims);
    return Array.from({ length: width }, (_, index) => ({
      name: String(index),
      label: `Feature ${index + 1}`,
      kind: "cell",
      value: "0",
    }));
  }
  return inputs.map(([name, { dtype }]) => {
    const text = ["STRING", "BYTES"].includes(dtype);
    return { name, label: name, kind: text ? "word" : "cell", value: text ? "" : "0" };
  });
}

function row(values, model) {
  const matrix = Object.keys(model.shoal.inputs).join() === "features";
  return { rows: [matrix ? Object.values(values) : values] };
}

/** The form of a model: its title, the path of the request, fields, and `body(values)`. */
export function formOf(model) {
  const task = model.shoal.task;
  const known = TASKS[task];
  if (!known) {
    const value = JSON.stringify({ input: "" }, null, 2);
    return {
      title: task || "A request of your own",
      path: `/v1/tasks/${encodeURIComponent(task)}`,
      run: "Send",
      fields: [{ name: "json", label: "Body, as JSON", kind: "json", value }],
      body: (values) => ({ model: model.id, ...values.json }),
    };
  }
  return {
    ...known,
    path: known.path ?? `/v1/tasks/${task}`,
    fields: known.fields(model),
    body: (values) => ({ model: model.id, ...(known.body ? known.body(values, model) : given(values)) }),
  };
}

const given = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));

/** The value of a field as JSON has it.
 *
 * @throws {Error} It is not what the field takes; the message names the field.
 */
export function valueOf(field, text) {
  switch (field.kind) {
    case "lines":
      return lines(text);
    case "words":
      return text.split(",").map((word) => word.trim()).filter(Boolean);
    case "number":
      return text.trim() === "" ? "" : numeric(field, text);
    case "cell":
      return text.trim() === "" ? null : numeric(field, text);
    case "file":
      return FILE;
    case "json":
      return object(field, text);
    default:
      return text;
  }
}

function numeric(field, text) {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${field.label} must be a number.`);
  return value;
}

function object(field, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`${field.label}: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Error(`${field.label}: it must be an object.`);
  }
  return value;
}
