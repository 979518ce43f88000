// The cluster map: this node in the middle, its peers around it, each link as busy and as well as it is.
"use strict";

function drawMap(found) {
  const peers = found.peers, many = peers.length > 16, rings = peers.length > 30 ? 2 : 1;
  const width = 760, height = many ? 620 : 440, x0 = width / 2, y0 = height / 2;
  const links = element("g", {}), spots = element("g", {}), texts = element("g", {});
  let top = y0 - 60, bottom = y0 + 60;
  peers.forEach((peer, i) => {
    const ring = rings === 2 && i % 2 ? .64 : 1;
    const angle = 2 * Math.PI * i / peers.length - Math.PI / 2 + (peers.length === 2 ? Math.PI / 2 : 0);
    const x = x0 + Math.cos(angle) * (x0 - 105) * ring, y = y0 + Math.sin(angle) * (y0 - 48) * ring;
    top = Math.min(top, y - 40);
    bottom = Math.max(bottom, y + 40);
    const busy = peer.rate.received_bytes + peer.rate.sent_bytes, dropping = peer.rate.dropped_packets > 0;
    const title = `${peer.name} at ${peer.endpoint}: ${peer.state}${peer.why ? ", " + peer.why : ""}\n`
      + `to it ${bits(peer.rate.sent_bytes)}, from it ${bits(peer.rate.received_bytes)}, dropped ${perSecond(peer.rate.dropped_packets)}`;
    links.append(element("g", { class: peer.state, "data-peer": peer.name }, element("title", {}, title),
      element("line", { x1: x0, y1: y0, x2: x, y2: y, "stroke-width": (1.5 + Math.min(7, Math.log10(1 + busy / 125))).toFixed(1) })));
    const r = many ? 9 : 13;
    spots.append(element("g", { class: `peer ${peer.state}` }, element("title", {}, title), element("circle", { cx: x, cy: y, r })));
    if (rings === 1) {
      const below = y >= y0 - 1;
      texts.append(element("text", { class: "halo", x, y: below ? y + r + 17 : y - r - 8 }, shortened(peer.name, many ? 12 : 22)));
    }
    if (!many) {
      const lines = peer.state === "down" ? [["dropping", "down"]]
        : [["", `→ ${bits(peer.rate.sent_bytes)}`], ["", `← ${bits(peer.rate.received_bytes)}`]];
      if (dropping) lines.push(["dropping", `dropped ${perSecond(peer.rate.dropped_packets)}`]);
      const xm = x0 + (x - x0) * .57, ym = y0 + (y - y0) * .57, wide = 14 + 6.6 * Math.max(...lines.map(([, text]) => text.length));
      const high = 15 * lines.length + 6;
      texts.append(element("rect", { class: "label", x: xm - wide / 2, y: ym - high / 2, width: wide, height: high, rx: 7 }),
        ...lines.map(([kind, text], n) => element("text", { class: `rate ${kind}`, x: xm, y: ym - high / 2 + 15 * (n + 1) }, text)));
    }
  });
  const self = element("g", { class: "self" }, element("title", {}, `${found.node.name} at ${found.node.endpoint}`),
    element("circle", { cx: x0, cy: y0, r: 34 }), element("text", { x: x0, y: y0 + 5 }, shortened(found.node.name, 9)));
  return element("svg", { id: "map", viewBox: `0 ${Math.floor(top)} ${width} ${Math.ceil(bottom - top)}`, role: "img",
    "aria-label": `Map: node ${found.node.name} and ${peers.length} of ${found.peers_total} peers` }, links, texts, spots, self);
}

const shortened = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
