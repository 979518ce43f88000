// Which page this is, and how it is kept up to date: one question to the router every two seconds, while somebody looks.
"use strict";

const main = document.getElementById("main"), live = document.getElementById("live");
const EVERY_MS = 2000;

function say(state, text) { live.className = state; if (live.textContent !== text) live.textContent = text; }
function show(...parts) {
  const list = main.querySelector(".drops"), at = list ? list.scrollTop : 0;
  main.replaceChildren(...parts.flat().filter(Boolean));
  const renewed = main.querySelector(".drops");
  if (renewed) renewed.scrollTop = at;
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(10000) });
  const found = (answer.headers.get("Content-Type") || "").startsWith("application/json") ? await answer.json() : {};
  if (!answer.ok) throw Object.assign(new Error(found.error || `the router answered ${answer.status}`), { told: true });
  return found;
}

async function keep(path, render) {
  for (;;) {
    if (!document.hidden) {
      try {
        const found = await ask(path);
        // What is being selected or typed is not taken away.
        if (document.getSelection().isCollapsed || !main.childElementCount) show(render(found));
        say("on", found.span_s ? "live" : "measuring");
      } catch (error) {
        say("off", error.told ? "refused" : "no answer");
        if (error.told) show(element("div", { class: "card notice" }, error.message));
      }
    }
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}

const stateTag = (state) => element("span", { class: `tag ${state}` }, state);
const trouble = (text) => text ? element("div", { class: "card notice" }, text) : null;

function clusterPage(found) {
  const node = found.node, states = found.peers_by_state, down = states.down || 0;
  document.title = `${node.name} · Podwire`;
  document.getElementById("node").textContent = `node ${node.name} at ${node.endpoint}`;
  const dropped = node.rate.dropped_packets + node.strangers_rate.dropped_packets;
  const shown = found.peers_total > found.peers.length ? `, the ${found.peers.length} that are busiest or down` : "";
  return [
    trouble(node.table_error && `The newest subnet table was refused: ${node.table_error}`),
    trouble(node.lease_lost && `This node's lease of its subnets is not held: ${node.lease_lost}`),
    trouble(node.source_error && `${node.source}: ${node.source_error}`),
    element("div", { class: "tiles" },
      tile(count(found.pods_total), "Pods on this node"),
      tile(down ? `${count(found.peers_total - down)} / ${count(found.peers_total)}` : count(found.peers_total), down ? `peers up, ${down} down` : "peers, none down", down),
      tile(bits(node.rate.received_bytes), "carried by this router"),
      tile(perSecond(node.rate.received_packets), "packets"),
      tile(perSecond(dropped), "dropped", dropped > 0)),
    element("div", { class: "two" },
      element("section", { class: "card" }, element("h2", {}, `Links to peers${shown}`),
        found.peers.length ? drawMap(found) : element("p", { class: "empty" }, "This node has no peers: the subnet table has no other node."),
        element("div", { class: "legend" }, element("span", { class: "up" }, "━ up"), element("span", { class: "down" }, "┅ down"),
          element("span", { class: "unknown" }, "┄ not known yet"), element("span", {}, "thicker: busier · → to the peer · ← from it"))),
      element("section", { class: "card" }, element("h2", {}, "Dropped lately"), drops(found.drops, found.at_s))),
    element("section", { class: "card" }, element("h2", {}, `Pods of this node${found.pods_total > found.pods.length ? `, the ${found.pods.length} busiest` : ""}`),
      table(found.pods, [
        ["Pod", "name", (pod) => element("a", { href: podLink(pod.link) }, pod.name)],
        ["Addresses", "mono", (pod) => pod.addresses.join(" ")],
        ["Sends", "n", (pod) => bits(pod.rate.received_bytes)], ["", "n soft", (pod) => perSecond(pod.rate.received_packets)],
        ["Receives", "n", (pod) => bits(pod.rate.sent_bytes)], ["", "n soft", (pod) => perSecond(pod.rate.sent_packets)],
        ["Dropped of its packets", "n", (pod) => element("span", { class: pod.rate.dropped_packets ? "bad" : null }, count(pod.dropped))],
      ], "No Pod is attached to this node yet.")),
    element("section", { class: "card" }, element("h2", {}, `Peers${shown}`),
      table(found.peers, [
        ["Node", "name", (peer) => peer.name], ["State", "", (peer) => [stateTag(peer.state), peer.why ? element("div", { class: "soft" }, peer.why) : null]],
        ["Endpoint", "mono", (peer) => peer.endpoint], ["Round trip", "n", (peer) => seconds(peer.rtt_s)],
        ["Loss", "n", (peer) => `${Math.round(peer.loss * 100)} %`], ["MTU", "n", (peer) => peer.mtu_bytes || "–"],
        ["To it", "n", (peer) => bits(peer.rate.sent_bytes)], ["From it", "n", (peer) => bits(peer.rate.received_bytes)],
        ["Dropped from it", "n", (peer) => element("span", { class: peer.rate.dropped_packets ? "bad" : null,
          title: Object.entries(peer.reasons).map(([why, n]) => `${words(why)}: ${n}`).join(", ") }, count(peer.dropped))],
      ], "None.")),
    element("p", { class: "soft" }, `podwire ${node.version}, engine ${node.engine}, up ${duration(node.up_s)} · subnet table version ${node.table_version} from ${node.source} · overlay MTU ${node.mtu_bytes} · rates over ${found.span_s.toFixed(0)} s`),
  ];
}

function podPage(pod) {
  document.title = `${pod.name} · Podwire`;
  document.getElementById("node").textContent = pod.is_node ? "the node itself" : "Pod";
  const dropped = Object.values(pod.fates.dropped).reduce((sum, n) => sum + n, 0);
  const fact = (name, value) => value && String(value).length ? [element("dt", {}, name), element("dd", {}, value)] : [];
  const limits = pod.limits || {};
  const fates = [["delivered on this node", pod.fates.delivered], ["sent to other nodes", pod.fates.tunnelled],
    ...Object.entries(pod.fates.dropped).map(([why, n]) => [`dropped: ${words(why)}`, n, true])];
  return [
    element("h1", {}, pod.name),
    element("div", { class: "tiles" },
      tile(bits(pod.rate.received_bytes), `sends, ${perSecond(pod.rate.received_packets)}`),
      tile(bits(pod.rate.sent_bytes), `receives, ${perSecond(pod.rate.sent_packets)}`),
      tile(perSecond(pod.rate.dropped_packets), `of its packets dropped, ${count(dropped)} in all`, pod.rate.dropped_packets > 0),
      tile(count(pod.kernel_drops), "dropped by the kernel at its full TUN")),
    element("div", { class: "two" },
      element("section", { class: "card" }, element("h2", {}, `Flows of the last ${pod.flows_span_s ? Math.round(pod.flows_span_s) : "few"} s, estimated from samples`),
        table(pod.flows, [
          ["Flow", "mono", (row) => flowText(row.flow)], ["From", "", (row) => row.source], ["To", "", (row) => row.target || "–"],
          ["Verdict", "", (row) => row.reason ? element("span", { class: "bad" }, words(row.reason)) : row.verdict],
          ["Rate", "n", (row) => bits(row.bytes_per_s)], ["Packets", "n", (row) => perSecond(row.packets_per_s)],
          ["Latency", "n", (row) => seconds(row.latency_s)],
        ], pod.flows_span_s ? "No flow was seen." : "Looking at packets now …")),
      element("section", { class: "card" }, element("h2", {}, "Dropped lately, from it or for it"), drops(pod.drops, pod.at_s))),
    element("div", { class: "two" },
      element("section", { class: "card" }, element("h2", {}, "What became of its packets"),
        table(fates, [["Fate", "", (row) => row[0]], ["Packets", "n", (row) => element("span", { class: row[2] ? "bad" : null }, count(row[1]))]], "")),
      element("section", { class: "card" }, element("h2", {}, "Attachment"), element("dl", {},
        fact("addresses", (pod.addresses || []).join(", ")), fact("sandbox", pod.sandbox_id), fact("interface", pod.if_name), fact("MTU", pod.mtu_bytes),
        fact("owner", pod.owner), fact("ports", (pod.ports || []).join(", ")),
        fact("limits", [limits.egress && `sends ${bits(limits.egress)}`, limits.ingress && `receives ${bits(limits.ingress)}`].filter(Boolean).join(", ")),
        Object.entries(pod.labels || {}).map(([key, value]) => fact(key, value))))),
    element("p", {}, element("a", { href: `/trace?src=${encodeURIComponent(pod.is_node ? "node" : `${pod.sandbox_id}/${pod.if_name}`)}` }, "Trace a packet from here")),
  ];
}

function tracePage() {
  document.title = "Trace · Podwire";
  const given = new URLSearchParams(location.search);
  const input = (name, text, attributes) => element("label", {}, text, element("input", { name, ...attributes }));
  const check = (name, text) => element("label", { class: "check" }, element("input", { name, type: "checkbox" }), text);
  const button = element("button", { type: "submit" }, "Trace"), result = element("div", { id: "steps" });
  const form = element("form", { class: "card" },
    input("src", "From", { placeholder: "Pod, its address, or node", required: true, value: given.get("src") || "", autocomplete: "off" }),
    input("dst", "To", { placeholder: "an address, or a Pod here", required: true, value: given.get("dst") || "", autocomplete: "off" }),
    element("label", {}, "Protocol", element("select", { name: "protocol" }, ["icmp", "tcp", "udp"].map((each) => element("option", {}, each)))),
    input("dst_port", "Port", { type: "number", min: 0, max: 65535, placeholder: "80 or 33434" }),
    input("packet_bytes", "Size in bytes", { type: "number", min: 0, max: 65535, placeholder: "smallest" }),
    check("dont_fragment", "Do not fragment"), check("dry_run", "Send nothing"), button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    const asked = Object.fromEntries(["src", "dst", "protocol"].map((name) => [name, form.elements[name].value.trim()]));
    for (const name of ["dst_port", "packet_bytes"]) asked[name] = Number(form.elements[name].value) || 0;
    for (const name of ["dont_fragment", "dry_run"]) asked[name] = form.elements[name].checked;
    try { await trace(asked, result); } catch (error) { result.replaceChildren(element("div", { class: "card notice" }, error.message)); }
    button.disabled = false;
  });
  show(element("h1", {}, "What becomes of a packet?"), form, result);
  say("on", "ready");
}

async function trace(asked, result) {
  const steps = [];
  result.replaceChildren(element("p", { class: "soft" }, "Asking …"));
  const answer = await fetch("/api/trace", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked) });
  if (!answer.ok) {
    const text = await answer.text();
    let why = text;
    try { why = JSON.parse(text).error; } catch { /* plain text */ }
    throw new Error(why);
  }
  const reader = answer.body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += done ? "" : decoder.decode(value, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const step = JSON.parse(line);
      if (step.error) throw new Error(step.error);
      steps.push(step);
    }
    result.replaceChildren(...traceResult(steps, done));
    if (done) return;
  }
}

function traceResult(steps, done) {
  const of = (kind) => steps.filter((step) => step.kind === kind), decisions = of("decision"), probes = of("probe");
  return [
    ...of("conclusion").map((step) => element("p", { class: step.reached ? "card conclusion good" : "card conclusion", id: "conclusion" }, step.text)),
    decisions.length ? element("section", { class: "card" }, element("h2", {}, "What routers decide"), table(decisions, [
      ["Node", "name", (step) => step.node || "–"],
      ["Verdict", "", (step) => step.reason ? element("span", { class: "bad" }, words(step.reason)) : step.verdict || "–"],
      ["Goes to", "", (step) => step.target || "–"], ["Next link's MTU", "n", (step) => step.mtu_bytes || "–"], ["", "soft", (step) => step.text]], "")) : null,
    probes.length ? element("section", { class: "card" }, element("h2", {}, "What a real packet meets"), table(probes, [
      ["Hop", "", (step) => step.hop], ["Node", "name", (step) => step.node || "–"], ["Address", "mono", (step) => step.address || "no answer"],
      ["Round trip", "n", (step) => seconds(step.rtt_s)], ["", "soft", (step) => step.text]], "")) : null,
    done ? null : element("p", { class: "soft" }, "Going on …"),
  ].filter(Boolean);
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

const path = location.pathname, page = path === "/trace" ? "trace" : path.startsWith("/pod/") ? "pod" : "cluster";
const here = document.querySelector(`nav a[data-page="${page}"]`);
if (here) here.className = "here";
if (page === "trace") tracePage();
else if (page === "pod") keep(`/api/pod.json?name=${encodeURIComponent(decoded(path.slice(5)))}`, podPage);
else keep("/api/cluster.json", clusterPage);
