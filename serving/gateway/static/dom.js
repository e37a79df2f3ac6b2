// Elements made without markup: whatever a model or a person wrote becomes text, never HTML.

/**
 * Make an element.
 *
 * @param {string} tag - Its name.
 * @param {object} [given] - Attributes by name; `class` too, `on` holds listeners by event, `vars` CSS variables.
 * @param {...(Node|string|null)} children - In their order; null is left out.
 */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (name === "vars") {
      for (const [variable, text] of Object.entries(value)) made.style.setProperty(variable, text);
    } else if (value === true) {
      made.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element of the page with an id. */
export const byId = (id) => document.getElementById(id);

/** A number as people read it, with some digits after the point at most. */
export const number = (value, digits = 2) =>
  value.toLocaleString("en", { maximumFractionDigits: digits });

/** A share as per cent. */
export const percent = (value, digits = 1) => `${number(100 * value, digits)} %`;

/** A number of bytes. */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (bytes >= 1000 && place < units.length - 1) {
    bytes /= 1000;
    place += 1;
  }
  return `${number(bytes, bytes < 10 && place ? 1 : 0)} ${units[place]}`;
}

/** Show an error in an element that screen readers announce (`role="alert"`). */
export function showError(place, error) {
  place.textContent = error ? error.message : "";
  place.hidden = !error;
}
