// What lies around an agent's pod, asked through its proxy and past it: a line for each answer. Then connections to another job's pod are
// left hanging, as many as it takes, for as long as this runs.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
const [fs, http, https, net, tls] = ["fs", "http", "https", "net", "tls"].map(require);
const around = JSON.parse(process.argv[2]);
const proxy = new URL(process.env.HTTPS_PROXY);

const through = (options) => new Promise((done) => {
  const request = http.request({ host: proxy.hostname, port: proxy.port, ...options });
  request.on("connect", (answer, socket) => { socket.destroy(); done(answer.statusCode); });
  request.on("response", (answer) => { answer.resume(); done(answer.statusCode); });
  request.on("error", (error) => done(error.code));
  request.end();
});

const past = (url) => new Promise((done) => {
  const request = (url.startsWith("https") ? https : http).get(url, (answer) => { answer.resume(); done(answer.statusCode); });
  request.setTimeout(3000, () => request.destroy(new Error("silence")));
  request.on("error", (error) => done(error.code ?? error.message));
});

// With a ticket that nobody gave.
const knock = (port, host) => new Promise((done) => {
  const ticket = Buffer.concat([Buffer.from("ckrvshm1"), Buffer.alloc(32, 7), Buffer.from([64]), Buffer.alloc(64, "a")]);
  const socket = tls.connect({ port, host, minVersion: "TLSv1.3" }, () => socket.write(ticket));
  socket.setTimeout(5000, () => socket.destroy());
  socket.on("data", (answer) => { done(["let in", "refused"][answer[0]] ?? answer[0]); socket.destroy(); });
  socket.on("error", (error) => done(error.code));
  socket.on("close", () => done("closed"));
});

const hang = (port, host) => {
  const socket = net.connect(port, host);
  socket.on("error", () => {});
  socket.on("close", () => setTimeout(hang, 20, port, host));
};

(async () => {
  for (const target of around.through) console.log(`through ${target}: ${await through({ method: "CONNECT", path: target })}`);
  console.log(`through ${around.plain}: ${await through({ path: around.plain })}`);
  for (const url of around.past) console.log(`past ${url}: ${await past(url)}`);
  const [host, port] = around.door.split(":");
  console.log(`knock: ${await knock(port, host)}`);
  for (let n = 0; n < 100; n++) hang(port, host);
  fs.writeFileSync("/tmp/tried", "");
})();
