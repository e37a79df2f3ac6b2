// Shows /openapi.json: each path with its body, its answers and its errors.

import { ask } from "./api.js";
import { byId, el, showError } from "./dom.js";

const plain = (text) => (text ?? "").replaceAll("`", "");
const named = (schema) => schema.$ref?.split("/").pop();


/** A schema in few words, such as `text, or list of numbers`. */
function words(schema, api) {
  if (schema.$ref) return named(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return several.map((each) => words(each, api)).join(", or ");
  if (schema.type === "array") return `list of ${schema.items ? words(schema.items, api) : "anything"}`;
  if (schema.type === "object" && schema.additionalProperties?.type) return `object of ${words(schema.additionalProperties, api)}`;
  return { string: "text", integer: "integer", number: "number", boolean: "true or false", object: "object", null: "null" }[schema.type] ?? "anything";
}

function limits(schema) {
  const told = [];
  const bounds = schema.anyOf ? schema.anyOf.find((each) => each.minimum !== undefined || each.maximum !== undefined) ?? schema : schema;
  if (bounds.minimum !== undefined) told.push(`at least ${bounds.minimum}`);
  if (bounds.maximum !== undefined) told.push(`at most ${bounds.maximum}`);
  if (schema.default !== undefined && schema.default !== null) told.push(`else ${JSON.stringify(schema.default)}`);
  return told.join(", ");
}

/** The schemas that a schema names, directly or in lists and choices. */
function mentioned(schema) {
  if (schema.$ref) return [named(schema)];
  const inner = [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), schema.items, schema.additionalProperties];
  return inner.filter((each) => each && typeof each === "object").flatMap(mentioned);
}

function fields(name, api, seen) {
  seen.add(name);
  const schema = api.components.schemas[name];
  const required = new Set(schema.required ?? []);
  const entries = Object.entries(schema.properties ?? {});
  const rows = entries.map(([field, held]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("code", {}, field), required.has(field) ? el("span", { class: "needed" }, " required") : null),
      el("td", {}, words(held, api)),
      el("td", { class: "muted" }, [plain(held.description), limits(held)].filter(Boolean).join(" ")),
    ),
  );
  const next = [...new Set(entries.flatMap(([, held]) => mentioned(held)))].filter((each) => !seen.has(each));
  const children = next.filter((each) => !seen.has(each) && seen.add(each));
  return [
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name }, el("table", { class: "schema" }, el("caption", {}, el("b", {}, name), ` ${plain(schema.description)}`), el("tbody", {}, ...rows))),
    ...children.flatMap((each) => fields(each, api, seen)),
  ];
}

function described(title, schema, api, seen) {
  const names = mentioned(schema).filter((name) => !seen.has(name));
  return el(
    "details",
    {},
    el("summary", {}, title, " ", el("span", { class: "muted" }, words(schema, api))),
    ...names.flatMap((name) => fields(name, api, seen)),
  );
}

function errors(responses) {
  const rows = Object.entries(responses)
    .filter(([status]) => Number(status) >= 400)
    .map(([status, { description }]) => el("tr", {}, el("th", { scope: "row" }, status), el("td", {}, description)));
  return el("table", {}, el("tbody", {}, ...rows));
}

function operation(path, method, told, api) {
  const id = told.operationId;
  const parts = [];
  for (const parameter of told.parameters ?? []) {
    parts.push(el("p", {}, el("code", {}, `{${parameter.name}}`), ` in the path: ${words(parameter.schema, api)}`));
  }
  const body = told.requestBody?.content["application/json"]?.schema;
  if (body) parts.push(described("Body", body, api, new Set()));
  for (const [type, { schema }] of Object.entries(told.responses["200"].content ?? {})) {
    parts.push(described(type === "text/event-stream" ? "Events of a stream" : "Answer", schema, api, new Set()));
  }
  const failed = Object.values(told.responses).find((each) => each.content && each !== told.responses["200"]);
  const schema = failed?.content["application/json"].schema;
  parts.push(el("details", {}, el("summary", {}, "Errors"), errors(told.responses), ...(schema ? mentioned(schema).flatMap((name) => fields(name, api, new Set())) : [])));
  const open = told.security?.length === 0;
  return el(
    "section",
    { class: "card", id, "aria-labelledby": `${id}-title`, tabindex: "-1" },
    el("h2", { id: `${id}-title`, class: "path" }, el("span", { class: "method" }, method.toUpperCase()), " ", el("code", {}, path)),
    el("p", {}, plain(told.summary), open ? el("span", { class: "muted" }, " It takes no key.") : null),
    ...parts,
  );
}

async function load() {
  try {
    const api = await ask("/openapi.json");
    const all = Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, told]) => ({ path, method, told })));
    byId("paths").replaceChildren(
      ...all.map(({ path, method, told }) => el("li", {}, el("a", { href: `#${told.operationId}` }, el("span", { class: "name" }, path), el("span", { class: "muted" }, method.toUpperCase())))),
    );
    const head = el("header", { class: "title" }, el("h1", {}, api.info.title));
    const intro = el("p", {}, `${plain(api.info.description)} The document itself is `, el("a", { href: "/openapi.json" }, "/openapi.json"), ` (OpenAPI ${api.openapi}). A key is sent as Authorization: Bearer KEY.`);
    byId("main").replaceChildren(head, intro, ...all.map(({ path, method, told }) => operation(path, method, told, api)));
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    showError(byId("problem"), error);
  }
}

load();
