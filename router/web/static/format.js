// Numbers as people read them, and elements whose text is only ever text: nothing that came from outside is parsed as HTML.
"use strict";

function element(tag, attributes, ...children) {
  const made = tag === "svg" || element.svg.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined) made.append(child instanceof Node ? child : String(child));
  }
  return made;
}
element.svg = new Set(["g", "line", "circle", "rect", "text", "title"]);

function scaled(number, units) {
  let unit = 0;
  while (number >= 999.5 && unit < units.length - 1) { number /= 1000; unit += 1; }
  const digits = number >= 100 ? 0 : 1;
  return `${+number.toFixed(digits)} ${units[unit]}`.trimEnd();
}
const bits = (bytesPerSecond) => scaled(bytesPerSecond * 8, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]);
const perSecond = (packets) => scaled(packets, ["", "k", "M", "G"]) + "/s";
const count = (number) => number.toLocaleString("en");
const words = (reason) => reason.replaceAll("_", " ");
const seconds = (s) => s === null ? "–" : s < 1e-3 ? `${Math.round(s * 1e6)} µs` : s < 1 ? `${(s * 1e3).toFixed(s < .01 ? 2 : 1)} ms` : `${s.toFixed(1)} s`;

function duration(s) {
  const days = Math.floor(s / 86400), hours = Math.floor(s / 3600) % 24, minutes = Math.floor(s / 60) % 60;
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min` : `${Math.floor(s)} s`;
}
const ago = (then, now) => now - then < 2 ? "just now" : `${duration(now - then)} ago`;

const withPort = (address, port) => address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
function flowText(flow) {
  if (!flow) return "–";
  if (flow.protocol.startsWith("icmp")) return `${flow.protocol} ${flow.src} → ${flow.dst} type ${flow.src_port} code ${flow.dst_port}`;
  if (!flow.src_port && !flow.dst_port) return `${flow.protocol} ${flow.src} → ${flow.dst}`;
  return `${flow.protocol} ${withPort(flow.src, flow.src_port)} → ${withPort(flow.dst, flow.dst_port)}`;
}

const podLink = (name) => "/pod/" + name.split("/").map(encodeURIComponent).join("/");
const tile = (value, text, bad) => element("div", { class: bad ? "card tile bad" : "card tile" }, element("b", {}, value), element("span", {}, text));

// columns: [heading, class, (row) => child]
function table(rows, columns, empty) {
  if (!rows.length) return element("p", { class: "empty" }, empty);
  return element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, columns.map(([heading, kind]) => element("th", { class: kind }, heading)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, columns.map(([, kind, cell]) => element("td", { class: kind }, cell(row))))))));
}

function drops(found, now) {
  if (!found.length) return element("p", { class: "empty" }, "Nothing was dropped lately.");
  return element("ul", { class: "drops" }, found.map((drop) => element("li", {},
    element("span", { class: "tag down" }, words(drop.reason)), ` ${count(drop.packets)} × `,
    element("span", { class: "soft" }, `${ago(drop.last_s, now)}, from ${drop.source}`),
    element("div", { class: "mono" }, flowText(drop.flow)),
    element("div", { class: "why" }, drop.text))));
}
