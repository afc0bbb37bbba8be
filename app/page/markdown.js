// An answer as Markdown: what becomes of it passes a sanitiser, which lets no more than text through.
import "./vendor/purify.min.js";
import { clean, el } from "./dom.js";
import { Marked } from "./vendor/marked.esm.js";

const LONGEST = 300_000; // characters
const KEPT = {
  ALLOWED_TAGS: [
    ..."h1 h2 h3 h4 h5 h6 p br hr em strong del code pre blockquote ul ol li".split(" "),
    ..."table thead tbody tr th td a".split(" "),
  ],
  ALLOWED_ATTR: ["href", "align", "start"],
  ALLOWED_URI_REGEXP: /^https?:\/\//i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const markdown = new Marked({
  async: false,
  gfm: true,
  // HTML within it is shown as it was written, and an image is not looked for.
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ raw }) => escaped(raw),
  },
});

/** The answer's text as elements, without any that could load, run, or look like this page. */
export function rendered(text) {
  if (text.length > LONGEST) {
    return el("p", { textContent: "This is too long to be shown as Markdown; the tokens show it." });
  }
  const made = DOMPurify.sanitize(markdown.parse(clean(text)), KEPT);
  for (const link of made.querySelectorAll("a")) {
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
  }
  for (const heading of made.querySelectorAll("h1,h2,h3,h4,h5,h6")) {
    // They stand below the answer's own heading.
    const level = Math.min(Number(heading.localName[1]) + 2, 6);
    heading.replaceWith(el(`h${level}`, {}, ...heading.childNodes));
  }
  return made;
}
