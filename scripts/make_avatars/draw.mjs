// Draws DiceBear's avatars as SVG, a line of JSON for each:
//
//     node draw.mjs FIRST COUNT STYLE...
//
// The first line says who drew the styles and under which license, the others are {style, seed, svg} for the seeds
// FIRST to FIRST + COUNT - 1 of each style in turn. The same seed gives the same drawing.

import { createAvatar } from "@dicebear/core";
import * as collection from "@dicebear/collection";

const BACKGROUNDS = ["b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf", "c9e7c4", "f9e79f", "f2f2f2"];
const LICENSES = ["CC0 1.0", "CC BY 4.0"];

// Notionists are half figures: enlarged, so that a face is more than a few pixels.
const OPTIONS = { notionists: { scale: 160, translateY: 24 } };

const exported = (style) => style.replace(/-(.)/g, (_, letter) => letter.toUpperCase());

const [first, count, ...styles] = process.argv.slice(2);
const credits = styles.map((style) => {
  const { title, creator, source, homepage, license } = collection[exported(style)].meta;
  if (!LICENSES.includes(license.name)) {
    throw new Error(`${style}: license "${license.name}" is none of ${LICENSES.join(", ")}`);
  }
  return { style, title, creator, source, homepage, license: license.name, terms: license.url };
});

function* lines() {
  yield JSON.stringify(credits);
  for (const style of styles) {
    const draw = collection[exported(style)];
    for (let seed = Number(first); seed < Number(first) + Number(count); seed++) {
      const options = { seed: String(seed), size: 64, backgroundColor: BACKGROUNDS, ...OPTIONS[style] };
      yield JSON.stringify({ style, seed, svg: createAvatar(draw, options).toString() });
    }
  }
}

for (const line of lines()) {
  if (!process.stdout.write(line + "\n")) {
    await new Promise((resolve) => process.stdout.once("drain", resolve));
  }
}
