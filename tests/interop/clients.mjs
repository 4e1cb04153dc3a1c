// What an ordinary JavaScript client does with a server: core, streams, consumers, KV, object store.
//
// NATS_URL=nats://127.0.0.1:PORT NATS_TOKEN=TOKEN node clients.mjs [part of a test's name]
// The packages are found from where this file lies, so it is copied beside them. Each test has
// streams of its own; one line each, and the exit code says whether all went well.
import assert from "node:assert/strict";
import {
  connect,
  deferred,
  delay,
  errors,
  headers,
  nanos,
  millis,
  nuid,
  tokenAuthenticator,
} from "@nats-io/transport-node";
import {
  AckPolicy,
  AdvisoryKind,
  DeliverPolicy,
  isPullConsumer,
  isPushConsumer,
  JetStreamApiCodes,
  JetStreamApiError,
  JetStreamError,
  jetstream,
  jetstreamManager,
} from "@nats-io/jetstream";
import { jserrors } from "@nats-io/jetstream/internal"; // not exported by the package root; PriorityPolicy is exported by neither: use strings
const { StreamNotFoundError, ConsumerNotFoundError } = jserrors;
import { Kvm, KvWatchInclude } from "@nats-io/kv";
import { Objm, StorageType } from "@nats-io/obj";

const servers = process.env.NATS_URL,
  token = process.env.NATS_TOKEN,
  RUN = nuid.next().slice(-6);
const n = (s) => `${s}_${RUN}`,
  tests = {};
const conn = (o = {}) => connect({ servers, token, maxReconnectAttempts: 2, ...o });
const code = async (p, c) => {
  const e = await p.then(
    (v) => assert.fail("no error, got " + JSON.stringify(v)),
    (e) => e,
  );
  if (!(e instanceof JetStreamApiError)) throw e;
  assert.equal(e.code, c, e.message);
  return e;
};
const take = async (it, k) => {
  const r = [];
  for await (const m of it) {
    r.push(m);
    if (r.length === k) break;
  }
  return r;
};
const seed = async (js, s, k, f = (i) => String(i)) => {
  for (let i = 0; i < k; i++) await js.publish(s, f(i));
};
const withJs = (f) => async () => {
  const nc = await conn();
  try {
    const js = jetstream(nc, { timeout: 4000 });
    await f(nc, js, await js.jetstreamManager());
  } finally {
    await nc.close();
  }
};

tests.connect = async () => {
  let nc = await conn({ name: "x" });
  assert.ok(nc.info.version && nc.info.headers && (await nc.rtt()) >= 0);
  await nc.close();
  assert.ok(nc.isClosed());
  nc = await connect({ servers, authenticator: tokenAuthenticator(token) });
  await nc.close();
  await assert.rejects(connect({ servers, token: "bad" }), errors.AuthorizationError);
};
tests.core = async () => {
  const nc = await conn(),
    s = n("core"),
    h = headers();
  h.append("X-A", "1");
  h.append("X-A", "2");
  h.set("b", "c");
  const sub = nc.subscribe(s + ".*", { max: 2 });
  nc.publish(s + ".a", "hi", { headers: h, reply: "r" });
  nc.publish(s + ".b");
  await nc.flush();
  const [a, b] = await take(sub, 2);
  assert.deepEqual(
    [a.subject, a.string(), a.reply, a.headers.values("X-A"), a.headers.get("b")],
    [s + ".a", "hi", "r", ["1", "2"], "c"],
  );
  assert.equal(b.data.length, 0);
  assert.equal(b.headers, undefined);
  const d = deferred();
  nc.subscribe(s, { callback: (err, m) => d.resolve(err ?? m.string()) });
  nc.publish(s, "cb");
  assert.equal(await d, "cb");
  const t = nc.subscribe(s + ".t", { timeout: 100 });
  await assert.rejects(
    (async () => {
      for await (const _ of t);
    })(),
    errors.TimeoutError,
  );
  await nc.close();
  assert.throws(() => nc.publish(s), errors.ClosedConnectionError);
};
tests.request = async () => {
  const nc = await conn(),
    s = n("rq");
  nc.subscribe(s, { callback: (_e, m) => m.respond("re:" + m.string(), { headers: m.headers }) });
  const h = headers();
  h.set("H", "1");
  let r = await nc.request(s, "x", { timeout: 1000, headers: h });
  assert.equal(r.string(), "re:x");
  assert.equal(r.headers.get("H"), "1");
  r = await nc.request(s, "y", { timeout: 1000, noMux: true, reply: n("inbox") });
  assert.equal(r.string(), "re:y");
  const e = await nc.request(n("nobody"), "", { timeout: 1000 }).catch((e) => e);
  assert.ok(e instanceof errors.RequestError && e.isNoResponders() && e.cause instanceof errors.NoRespondersError);
  nc.subscribe(s + ".mute", { callback() {} });
  const e2 = await nc.request(s + ".mute", "", { timeout: 200 }).catch((e) => e);
  assert.ok(e2 instanceof errors.TimeoutError, e2.name);
  nc.subscribe(s + ".m", {
    callback: (_e, m) => {
      m.respond("1");
      m.respond("2");
    },
  });
  const many = [];
  for await (const m of await nc.requestMany(s + ".m", "", { strategy: "count", maxMessages: 2, maxWait: 1000 }))
    many.push(m.string());
  assert.deepEqual(many, ["1", "2"]);
  await nc.close();
};
tests.queue_drain = async () => {
  const nc = await conn(),
    s = n("q"),
    c = [0, 0];
  for (const i of [0, 1])
    nc.subscribe(s, {
      queue: "g",
      callback: () => {
        c[i]++;
      },
    });
  for (let i = 0; i < 100; i++) nc.publish(s);
  await nc.flush();
  await delay(100);
  assert.equal(c[0] + c[1], 100);
  assert.ok(c[0] && c[1]);
  let got = 0;
  const sub = nc.subscribe(s + "d");
  const loop = (async () => {
    for await (const _ of sub) {
      got++;
    }
  })();
  for (let i = 0; i < 10; i++) nc.publish(s + "d");
  await sub.drain();
  await loop;
  assert.equal(got, 10); // drain() can resolve before the iterator has yielded everything
  assert.ok(sub.isClosed());
  await nc.drain();
  assert.ok(nc.isClosed());
  assert.equal(await nc.closed(), undefined);
};
tests.stream_admin = withJs(async (nc, js, jsm) => {
  const S = n("ADM"),
    cfg = {
      name: S,
      subjects: [S + ".>"],
      storage: StorageType.Memory,
      max_msgs: 100,
      max_age: nanos(60_000),
      metadata: { k: "v" },
      allow_direct: true,
    };
  const si = await jsm.streams.add(cfg);
  assert.equal(si.config.max_age, nanos(60_000));
  await jsm.streams.add(cfg);
  const e = await code(jsm.streams.add({ name: S, subjects: ["o." + S] }), 10058);
  assert.equal(e.status, 400);
  assert.deepEqual(e.apiError(), { code: 400, err_code: 10058, description: e.message });
  assert.equal((await jsm.streams.update(S, { max_msgs: 50 })).config.max_msgs, 50); // partial: merged with the current config
  const names = [];
  for await (const x of jsm.streams.names()) names.push(x);
  assert.ok(names.includes(S));
  const l = await jsm.streams.list(S + ".>").next();
  assert.deepEqual(
    l.map((x) => x.config.name),
    [S],
  );
  assert.equal(await jsm.streams.find(S + ".a"), S);
  for (let i = 1; i <= 6; i++) await js.publish(`${S}.${"ab"[i % 2]}`, String(i));
  assert.deepEqual((await jsm.streams.info(S, { subjects_filter: ">" })).state.subjects, {
    [S + ".a"]: 3,
    [S + ".b"]: 3,
  });
  let m = await jsm.streams.getMessage(S, { seq: 2 });
  assert.deepEqual([m.seq, m.subject, m.string(), m.time instanceof Date], [2, S + ".a", "2", true]);
  assert.equal((await jsm.streams.getMessage(S, { last_by_subj: S + ".b" })).seq, 5);
  assert.equal(await jsm.streams.getMessage(S, { seq: 99 }), null);
  assert.ok(await jsm.streams.deleteMessage(S, 2, false));
  assert.equal(await jsm.streams.getMessage(S, { seq: 2 }), null);
  assert.deepEqual((await jsm.streams.info(S, { deleted_details: true })).state.deleted, [2]);
  assert.equal((await jsm.streams.purge(S, { filter: S + ".b", keep: 1 })).purged, 2);
  assert.equal((await jsm.streams.purge(S, { seq: 6 })).purged, 2);
  assert.equal((await jsm.streams.purge(S)).purged, 1);
  const a = await jsm.getAccountInfo();
  assert.ok(a.streams >= 1 && a.api.level >= 1);
  assert.ok(await jsm.streams.delete(S));
  const nf = await code(jsm.streams.info(S), JetStreamApiCodes.StreamNotFound);
  assert.ok(nf instanceof StreamNotFoundError);
});
tests.direct = withJs(async (nc, js, jsm) => {
  const S = n("DIR");
  await jsm.streams.add({ name: S, subjects: [S + ".>"], allow_direct: true });
  const h = headers();
  h.set("H", "1");
  for (let i = 1; i <= 9; i++) await js.publish(`${S}.${"abc"[i % 3]}`, String(i), { headers: h });
  const d = jsm.direct,
    seqs = async (it) => (await take(it, 99)).map((m) => m.seq);
  let m = await d.getMessage(S, { seq: 2 });
  assert.deepEqual([m.seq, m.subject, m.string(), m.stream, m.header.get("H")], [2, S + ".c", "2", S, "1"]);
  assert.equal((await d.getMessage(S, { last_by_subj: S + ".a" })).seq, 9);
  assert.equal((await d.getMessage(S, { seq: 4, next_by_subj: S + ".a" })).seq, 6);
  assert.equal((await d.getMessage(S, { start_time: m.time })).seq <= 2, true);
  assert.equal(await d.getMessage(S, { seq: 99 }), null);
  const b = await take(await d.getBatch(S, { seq: 3, batch: 3 }), 99);
  assert.deepEqual(
    b.map((m) => [m.seq, m.lastSequence, m.pending]),
    [
      [3, 0, 6],
      [4, 3, 5],
      [5, 4, 4],
    ],
  );
  assert.deepEqual(await seqs(await d.getBatch(S, { seq: 1, batch: 10, next_by_subj: S + ".a" })), [3, 6, 9]);
  assert.deepEqual(await seqs(await d.getBatch(S, { start_time: new Date(0), batch: 2 })), [1, 2]);
  assert.deepEqual(await seqs(await d.getLastMessagesFor(S, { multi_last: [S + ".>"] })), [7, 8, 9]);
  assert.deepEqual(
    await seqs(await d.getLastMessagesFor(S, { multi_last: [S + ".a", S + ".b"], up_to_seq: 6 })),
    [4, 6],
  );
  const got = [],
    done = deferred();
  await d.getBatch(S, { seq: 1, batch: 2, callback: (end, sm) => (end ? done.resolve(end.err) : got.push(sm.seq)) });
  assert.equal(await done, undefined);
  assert.deepEqual(got, [1, 2]);
  const e = await seqs(await d.getBatch(S, { seq: 99, batch: 2 })).catch((e) => e);
  assert.ok(e instanceof JetStreamError && e.code === 404, e);
  await jsm.streams.delete(S);
});
tests.publish_expect = withJs(async (nc, js, jsm) => {
  const S = n("PUB"),
    P = (o) => js.publish(S + ".a", "", o);
  await jsm.streams.add({ name: S, subjects: [S + ".>"], allow_msg_ttl: true });
  assert.deepEqual(await P({ msgID: "m1" }), { stream: S, seq: 1, duplicate: false });
  assert.equal((await P({ msgID: "m1" })).duplicate, true);
  assert.equal(
    (await P({ expect: { streamName: S, lastSequence: 1, lastMsgID: "m1", lastSubjectSequence: 1 } })).seq,
    2,
  );
  await code(P({ expect: { lastSequence: 9 } }), JetStreamApiCodes.StreamWrongLastSequence);
  await code(P({ expect: { lastMsgID: "z" } }), 10070);
  await code(P({ expect: { streamName: "NOPE" } }), 10060);
  await code(P({ expect: { lastSubjectSequence: 1 } }), 10071);
  await code(P({ expect: { lastSubjectSequence: 0, lastSubjectSequenceSubject: S + ".a" } }), 10071);
  assert.equal((await P({ expect: { lastSubjectSequence: 0, lastSubjectSequenceSubject: S + ".zz" } })).seq, 3);
  const e = await js.publish(n("none"), "", { retries: 0 }).catch((e) => e);
  assert.ok(e instanceof jserrors.JetStreamNotEnabled, e.name); // what a publish with no stream gives
  await js.publish(S + ".ttl", "", { ttl: "1s" });
  await delay(2200);
  assert.equal(await jsm.streams.getMessage(S, { last_by_subj: S + ".ttl" }), null);

  await jsm.streams.delete(S);
});
tests.consume_fetch_next = withJs(async (nc, js, jsm) => {
  const S = n("PULL");
  await jsm.streams.add({ name: S, subjects: [S] });
  await seed(js, S, 20);
  const ci = await jsm.consumers.add(S, { durable_name: "d", ack_policy: AckPolicy.Explicit, ack_wait: nanos(1500) });
  assert.equal(ci.num_pending, 20);
  const c = await js.consumers.get(S, "d");
  assert.ok(isPullConsumer(c) && !isPushConsumer(c));
  let m = await c.next({ expires: 1000 });
  assert.deepEqual(
    [
      m.seq,
      m.string(),
      m.redelivered,
      m.info.stream,
      m.info.consumer,
      m.info.deliveryCount,
      m.info.pending,
      m.info.streamSequence,
    ],
    [1, "0", false, S, "d", 1, 19, 1],
  );
  assert.ok(await m.ackAck());
  const f = [];
  for await (const m of await c.fetch({ max_messages: 4, expires: 2000 })) {
    f.push(m.string());
    m.ack();
  }
  assert.deepEqual(f, ["1", "2", "3", "4"]);
  const fb = [],
    fe = await (async () => {
      for await (const m of await c.fetch({ max_bytes: 400, expires: 1000 })) {
        fb.push(m);
        m.ack();
      }
    })().catch((e) => e);
  assert.ok(fe === undefined || (fe.code === 409 && /exceeds maxbytes/i.test(fe.message)), fe); // QUIRK: the iterator throws after the messages that fitted
  assert.ok(fb.length > 0 && fb.length < 8);
  const rest = 20 - 5 - fb.length,
    it = await c.consume({ max_messages: 5, expires: 2000, idle_heartbeat: 500 });
  let k = 0;
  const notes = [];
  (async () => {
    for await (const x of it.status()) notes.push(x.type);
  })();
  for await (const m of it) {
    m.ack();
    if (++k === rest) break;
  }
  await it.close();
  assert.equal(it.getProcessed(), rest);
  assert.ok(notes.includes("next"), notes);
  await nc.flush();
  assert.equal(await c.next({ expires: 1000 }), null);
  assert.equal((await c.info()).num_ack_pending, 0); // 1000 ms is the smallest expires
  const cbs = [],
    it2 = await c.consume({
      callback: (m) => {
        cbs.push(m.string());
        m.ack();
      },
    });
  await seed(js, S, 3);
  await delay(200);
  await it2.close();
  assert.deepEqual(cbs, ["0", "1", "2"]);
  await js.publish(S, "x");
  m = await c.next({ expires: 1000 });
  m.nak();
  m = await c.next({ expires: 1000 });
  assert.ok(m.redelivered);
  assert.equal(m.info.deliveryCount, 2);
  let t = Date.now();
  m.nak(500);
  m = await c.next({ expires: 3000 });
  assert.ok(Date.now() - t >= 400 && m.info.deliveryCount === 3);
  for (let i = 0; i < 3; i++) {
    await delay(800);
    m.working();
  }
  assert.equal((await c.info()).num_redelivered, 1);
  m.term("bad");
  await nc.flush();
  assert.equal((await c.info()).num_ack_pending, 0);
  const si = await js.streams.get(S);
  assert.equal((await si.getConsumer("d")) !== null, true);
  assert.equal((await jsm.consumers.update(S, "d", { description: "new" })).config.description, "new");
  assert.deepEqual(
    (await jsm.consumers.list(S).next()).map((x) => x.name),
    ["d"],
  );
  const nf = await code(jsm.consumers.info(S, "zz"), JetStreamApiCodes.ConsumerNotFound);
  assert.ok(nf instanceof ConsumerNotFoundError);
  await assert.rejects(js.consumers.get(S, "zz"), ConsumerNotFoundError);
  assert.ok(await c.delete());
  await jsm.streams.delete(S);
});
tests.ordered = withJs(async (nc, js, jsm) => {
  const S = n("ORD");
  await jsm.streams.add({ name: S, subjects: [S + ".>"] });
  for (let i = 0; i < 50; i++) await js.publish(`${S}.${i % 2}`, String(i));
  const c = await js.consumers.get(S, {
    filter_subjects: S + ".0",
    deliver_policy: DeliverPolicy.All,
    inactive_threshold: nanos(60_000),
  });
  assert.equal((await c.next({ expires: 1000 })).string(), "0");
  assert.equal((await take(await c.fetch({ max_messages: 3, expires: 1000 }), 3)).length, 3);
  const all = await js.consumers.get(S),
    it = await all.consume({ idle_heartbeat: 500, expires: 1500, max_messages: 10 }),
    notes = [];
  (async () => {
    for await (const x of it.status()) notes.push(x.type);
  })();
  let k = 0;
  for await (const m of it) {
    assert.equal(m.string(), String(k));
    k++;
    if (k === 20) {
      const nm = (await all.info()).name;
      await jsm.consumers.delete(S, nm);
    }
    if (k === 50) break;
  }
  assert.ok(notes.includes("ordered_consumer_recreated"), notes);
  await it.close();
  const s = await js.consumers.get(S, { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: 49 });
  assert.equal((await s.next({ expires: 1000 })).seq, 49);
  const p = await js.consumers.getPushConsumer(S, { filter_subjects: [S + ".1"] }),
    pi = await p.consume();
  assert.deepEqual(
    (await take(pi, 3)).map((m) => m.seq),
    [2, 4, 6],
  ); // ordered push
  await jsm.streams.delete(S);
});
tests.push = withJs(async (nc, js, jsm) => {
  const S = n("PUSH"),
    ds = n("deliver");
  await jsm.streams.add({ name: S, subjects: [S] });
  await seed(js, S, 5);
  await jsm.consumers.add(S, {
    durable_name: "p",
    ack_policy: "explicit",
    deliver_subject: ds,
    idle_heartbeat: nanos(500),
    flow_control: true,
  });
  const c = await js.consumers.getPushConsumer(S, "p");
  assert.ok(isPushConsumer(c));
  const it = await c.consume(),
    notes = [];
  (async () => {
    for await (const x of it.status()) notes.push(x.type);
  })();
  const got = [];
  for await (const m of it) {
    m.ack();
    got.push(m.string());
    if (got.length === 5) {
      assert.ok((await c.info()).push_bound);
      await delay(1200);
      break;
    }
  }
  assert.equal(got.length, 5);
  assert.ok(notes.includes("heartbeat"), notes);
  await it.close();
  await jsm.consumers.add(S, {
    durable_name: "q",
    ack_policy: "explicit",
    deliver_subject: ds + "q",
    deliver_group: "g",
  });
  const cnt = [0, 0];
  for (const i of [0, 1])
    await (
      await js.consumers.getPushConsumer(S, "q")
    ).consume({
      callback: (m) => {
        cnt[i]++;
        m.ack();
      },
    });
  await seed(js, S, 50);
  await delay(300);
  assert.equal(cnt[0] + cnt[1], 55);
  assert.ok(cnt[0] && cnt[1], cnt);
  await jsm.consumers.add(S, { durable_name: "b", ack_policy: "none", deliver_subject: ds + "b" });
  const bc = await js.consumers.getBoundPushConsumer({ deliver_subject: ds + "b" });
  const bi = await bc.consume();
  assert.ok((await take(bi, 3)).length === 3);
  await assert.rejects(js.consumers.get(S, "p"), /not a pull consumer/);
  await jsm.streams.delete(S);
});
tests.flow_control = withJs(async (nc, js, jsm) => {
  const S = n("FC"),
    N = 600;
  await jsm.streams.add({ name: S, subjects: [S] });
  await Promise.all(Array.from({ length: N }, () => js.publish(S, new Uint8Array(8192))));
  await jsm.consumers.add(S, {
    durable_name: "fc",
    ack_policy: "none",
    deliver_subject: n("fcd"),
    flow_control: true,
    idle_heartbeat: nanos(500),
  });
  const it = await (await js.consumers.getPushConsumer(S, "fc")).consume(),
    notes = [];
  (async () => {
    for await (const x of it.status()) notes.push(x.type);
  })();
  assert.deepEqual(
    (await take(it, N)).map((m) => m.seq),
    Array.from({ length: N }, (_, i) => i + 1),
  );
  assert.ok(notes.includes("flow_control"), [...new Set(notes)]);
  await jsm.streams.delete(S);
});
tests.priority = withJs(async (nc, js, jsm) => {
  const S = n("PRI");
  await jsm.streams.add({ name: S, subjects: [S] });
  const add = (name, o) =>
    jsm.consumers.add(S, { durable_name: name, ack_policy: "explicit", priority_groups: ["g"], ...o });
  await add("o", { priority_policy: "overflow" });
  await seed(js, S, 5);
  const o = await js.consumers.get(S, "o");
  const run = async (opts) => {
    const r = [];
    for await (const m of await o.fetch({ max_messages: 10, expires: 1000, group: "g", ...opts })) {
      r.push(m.seq);
      m.ack();
    }
    return r;
  };
  assert.deepEqual(await run({ min_pending: 100 }), []);
  assert.deepEqual(await run({ min_pending: 2 }), [1, 2, 3, 4]); // stops once num_pending < 2
  await assert.rejects(
    jsm.consumers.add(S, { durable_name: "bad", ack_policy: "explicit", priority_policy: "overflow" }),
    /'priority_groups' must be an array/,
  ); // checked client side
  // pinned
  await add("p", { priority_policy: "pinned_client", priority_timeout: nanos(2000) });
  const mk = async () => {
    const got = [],
      st = [],
      c = await js.consumers.get(S, "p");
    const it = await c.consume({
      group: "g",
      /* no min_pending: it turns pin handling off */ max_messages: 10,
      expires: 2000,
      idle_heartbeat: 500,
      callback: (m) => {
        got.push(m.seq);
        m.ack();
      },
    });
    (async () => {
      for await (const x of it.status()) st.push(x.type);
    })();
    return { got, st, it, c };
  };
  const a = await mk();
  await delay(200);
  const b = await mk();
  await delay(200);
  await seed(js, S, 3);
  await delay(300);
  assert.equal(a.got.length, 8, JSON.stringify([a.got, b.got, a.st]));
  assert.equal(b.got.length, 0);
  assert.ok(a.st.includes("consumer_pinned"), a.st);
  const raw = JSON.parse((await nc.request(`$JS.API.CONSUMER.INFO.${S}.p`)).string());
  assert.equal(raw.priority_groups[0].group, "g");
  assert.ok(raw.priority_groups[0].pinned_client_id);
  await jsm.consumers.unpin(S, "p", "g");
  await delay(300);
  await seed(js, S, 10);
  await delay(800);
  assert.equal(a.got.length + b.got.length, 18, JSON.stringify([a.got, b.got]));
  assert.ok(a.st.includes("consumer_unpinned"), a.st);
  await a.it.close();
  await b.it.close();
  // prioritized (2.12)
  await add("z", { priority_policy: "prioritized" });
  const z = await js.consumers.get(S, "z");
  const pull = async (priority) => {
    const r = [];
    for await (const m of await z.fetch({ max_messages: 100, expires: 1500, group: "g", priority })) {
      r.push(m.seq);
      m.ack();
    }
    return r;
  };
  await Promise.all([pull(9), pull(9)]);
  const [lo, hi] = await Promise.all([pull(5), pull(1), delay(300).then(() => seed(js, S, 5))]);
  assert.deepEqual([lo.length, hi.length], [0, 5]); // lowest number first
  await jsm.streams.delete(S);
});
tests.pause_reset = withJs(async (nc, js, jsm) => {
  const S = n("PAU");
  await jsm.streams.add({ name: S, subjects: [S] });
  await seed(js, S, 3);
  await jsm.consumers.add(S, { durable_name: "d", ack_policy: "explicit" });
  const p = await jsm.consumers.pause(S, "d", new Date(Date.now() + 60_000));
  assert.ok(p.paused && p.pause_until);
  const c = await js.consumers.get(S, "d");
  assert.equal((await c.info()).paused, true);
  assert.ok(millis((await c.info()).pause_remaining) > 50_000);
  assert.equal(await c.next({ expires: 1000 }), null);
  assert.equal((await jsm.consumers.resume(S, "d")).paused, false);
  for await (const m of await c.fetch({ max_messages: 3, expires: 2000 })) await m.ackAck();
  const r = await jsm.consumers.reset(S, "d", 2);
  assert.equal(r.reset_seq, 2);
  assert.equal(r.num_pending, 2);
  const m = await c.next({ expires: 1000 });
  assert.deepEqual([m.seq, m.info.deliverySequence], [2, 1]);
  await jsm.consumers.add(S, { durable_name: "n", ack_policy: "explicit", deliver_policy: "new" });
  await code(jsm.consumers.reset(S, "n", 1), 10204);
  const st = await js.streams.get(S);
  assert.equal((await st.resetConsumer("d")).reset_seq >= 1, true);
  await jsm.streams.delete(S);
});
tests.advisories = withJs(async (nc, js, jsm) => {
  const S = n("ADV"),
    got = [];
  const it = jsm.advisories();
  (async () => {
    for await (const a of it) got.push(a);
  })();
  await nc.flush(); // subscribes $JS.EVENT.ADVISORY.>
  await jsm.streams.add({ name: S, subjects: [S] });
  await jsm.consumers.add(S, {
    durable_name: "d",
    ack_policy: "explicit",
    max_deliver: 1,
    ack_wait: nanos(200),
    sample_freq: "100",
  });
  await js.publish(S);
  await js.publish(S);
  await js.publish(S);
  const c = await js.consumers.get(S, "d");
  (await c.next({ expires: 1000 })).term("why");
  await (await c.next({ expires: 1000 })).ackAck();
  await c.next({ expires: 1000 });
  await c.next({ expires: 1000 });
  await jsm.streams.delete(S);
  await delay(300);
  const k = new Set(got.filter((a) => JSON.stringify(a.data).includes(S)).map((a) => a.kind));
  for (const x of [
    AdvisoryKind.StreamAction,
    AdvisoryKind.ConsumerAction,
    AdvisoryKind.Terminated,
    AdvisoryKind.MaxDeliver,
    AdvisoryKind.API,
  ])
    assert.ok(k.has(x), `${x} not in ${[...k]}`);
  assert.equal(got.find((a) => a.kind === "terminated").data.reason, "why");
});
tests.kv = async () => {
  const nc = await conn(),
    kvm = new Kvm(nc),
    B = n("KV"),
    kv = await kvm.create(B, { history: 5, storage: "memory", description: "d" });
  assert.equal(await kv.put("a", "1"), 1);
  let e = await kv.get("a");
  assert.deepEqual(
    [e.bucket, e.key, e.string(), e.revision, e.operation, e.length, e.created instanceof Date],
    [B, "a", "1", 1, "PUT", 1, true],
  );
  assert.equal(await kv.create("b", "x"), 2);
  await code(kv.create("b", "y"), 10071);
  assert.equal(await kv.update("a", "2", 1), 3);
  await code(kv.update("a", "3", 1), 10071);
  await code(kv.put("a", "3", { previousSeq: 1 }), 10071);
  assert.equal((await kv.get("a", { revision: 1 })).string(), "1");
  assert.equal(await kv.get("a", { revision: 2 }), null);
  assert.equal(await kv.get("zz"), null);
  await assert.rejects(kv.put("a b", ""), /invalid key/i);
  const keys = async (f) => (await take(await kv.keys(f), 99)).sort(),
    hist = async (k) => (await take(await kv.history({ key: k }), 99)).map((h) => [h.revision, h.operation]);
  assert.deepEqual(await keys(), ["a", "b"]);
  assert.deepEqual(await keys("b"), ["b"]);
  assert.deepEqual(await hist("a"), [
    [1, "PUT"],
    [3, "PUT"],
  ]);
  await kv.delete("a");
  e = await kv.get("a");
  assert.deepEqual([e.operation, e.revision, e.length], ["DEL", 4, 0]);
  assert.equal(await kv.create("a", "again"), 5);
  await code(kv.delete("b", { previousSeq: 1 }), 10071);
  await kv.purge("a");
  assert.deepEqual(await hist("a"), [[6, "PURGE"]]);
  assert.equal((await kv.purgeDeletes(0)).purged, 1);
  assert.equal(await kv.get("a"), null);
  const st = await kv.status();
  assert.deepEqual(
    [st.bucket, st.history, st.values, st.streamInfo.config.name, st.ttl, st.description],
    [B, 5, 1, "KV_" + B, 0, "d"],
  );
  assert.equal((await (await kvm.open(B)).get("b")).string(), "x");
  const ls = [];
  for await (const s of kvm.list()) ls.push(s.bucket);
  assert.ok(ls.includes(B));
  assert.ok(await kv.destroy());
  await nc.close();
};
tests.kv_watch = async () => {
  const nc = await conn(),
    kv = await new Kvm(nc).create(n("KW"), { history: 3 });
  await kv.put("a.x", "1");
  await kv.put("a.x", "2");
  await kv.put("b", "3");
  let w = await kv.watch();
  const init = await take(w, 2);
  assert.deepEqual(
    init.map((e) => [e.key, e.string(), e.isUpdate, e.delta]),
    [
      ["a.x", "2", false, 1],
      ["b", "3", true, 0],
    ],
  ); // QUIRK: the last initial entry already has isUpdate true (delta 0)

  w = await kv.watch({ key: "b", include: KvWatchInclude.UpdatesOnly });
  await kv.delete("b");
  await kv.put("b", "4");
  assert.deepEqual(
    (await take(w, 2)).map((e) => [e.operation, e.isUpdate]),
    [
      ["DEL", true],
      ["PUT", true],
    ],
  );
  w = await kv.watch({ key: ["a.*"], include: KvWatchInclude.AllHistory });
  assert.deepEqual(
    (await take(w, 2)).map((e) => e.string()),
    ["1", "2"],
  );
  w = await kv.watch({ resumeFromRevision: 4, headers_only: true, ignoreDeletes: true });
  const [r] = await take(w, 1);
  assert.deepEqual([r.revision, r.value.length, r.length], [5, 0, 1]);
  await kv.destroy();
  await nc.close();
};
tests.kv_ttl = async () => {
  const nc = await conn(),
    B = n("KT"),
    kv = await new Kvm(nc).create(B, { history: 2, ttl: 60_000, markerTTL: 1000 }),
    st = await kv.status();
  assert.deepEqual(
    [st.ttl, st.markerTTL, st.streamInfo.config.allow_msg_ttl, st.streamInfo.config.subject_delete_marker_ttl],
    [60_000, 1000, true, 1e9],
  );
  const w = await kv.watch();
  await kv.create("k", "v", "1s");
  const [a, b] = await take(w, 2);
  assert.deepEqual([a.operation, b.key, b.operation], ["PUT", "k", "PURGE"]);
  await kv.put("p", "1");
  await kv.purge("p", { ttl: "1s" });
  await delay(2500);
  assert.equal(await kv.get("p"), null);
  await kv.destroy();
  await nc.close();
};
tests.obj = async () => {
  const nc = await conn(),
    om = new Objm(nc),
    B = n("OB"),
    data = crypto.getRandomValues(new Uint8Array(60_000)),
    big = new Uint8Array(300_000);
  for (let i = 0; i < 5; i++) big.set(data, i * 60_000);
  const ob = await om.create(B, { description: "d", storage: StorageType.Memory }),
    h = headers();
  h.set("H", "v");
  let i = await ob.putBlob({ name: "f", description: "desc", headers: h, metadata: { m: "1" } }, big);
  assert.deepEqual([i.size, i.chunks, i.bucket, i.digest.slice(0, 8)], [300_000, 3, B, "SHA-256="]);
  assert.deepEqual(await ob.getBlob("f"), big);
  const r = await ob.get("f");
  let len = 0;
  for await (const c of r.data) len += c.length;
  assert.equal(len, 300_000);
  assert.ok(!(await r.error));
  i = await ob.info("f");
  assert.deepEqual(
    [
      i.name,
      i.description,
      i.headers.get("H"),
      i.metadata,
      i.options.max_chunk_size,
      i.deleted ?? false,
      i.revision > 0,
    ],
    ["f", "desc", "v", { m: "1" }, 131072, false, true],
  );
  assert.equal(await ob.info("zz"), null);
  assert.equal(await ob.get("zz"), null);
  i = await ob.put({ name: "g", options: { max_chunk_size: 100_000 } }, new Blob([big]).stream());
  assert.equal(i.chunks, 3);
  await ob.putBlob({ name: "empty" }, null);
  assert.equal((await ob.getBlob("empty")).length, 0);
  assert.deepEqual((await ob.list()).map((o) => o.name).sort(), ["empty", "f", "g"]);
  await ob.link("ln", await ob.info("f"));
  assert.deepEqual(await ob.getBlob("ln"), big);
  assert.deepEqual((await ob.info("ln")).options.link, { bucket: B, name: "f" });
  const ob2 = await om.create(B + "2");
  await ob.linkStore("ls", ob2);
  assert.equal((await ob.info("ls")).options.link.bucket, B + "2");
  await assert.rejects(ob.link("x", await ob.info("ln")), /link/i);
  await assert.rejects(ob.get("ls"), /link/i);
  await ob.update("f", { name: "f2", description: "new" });
  assert.equal(await ob.info("f"), null);
  assert.equal((await ob.info("f2")).description, "new");
  assert.deepEqual(await ob.getBlob("f2"), big);
  const d = await ob.delete("g");
  assert.ok(d.success && d.purged === 3);
  assert.equal((await ob.info("g")).deleted, true);
  assert.equal(await ob.getBlob("g"), null);
  assert.deepEqual((await ob.list()).map((o) => o.name).sort(), ["empty", "f2", "ln", "ls"]);
  const st = await ob.seal();
  assert.ok(st.sealed);
  await code(ob.putBlob({ name: "h" }, data), 10109);
  const s2 = await (await om.open(B)).status();
  assert.deepEqual([s2.bucket, s2.description, s2.sealed, s2.streamInfo.config.name], [B, "d", true, "OBJ_" + B]);
  await ob2.destroy();
  assert.ok(await ob.destroy());
  await assert.rejects(om.open(B));
  await nc.close();
};
tests.obj_watch = async () => {
  const nc = await conn(),
    ob = await new Objm(nc).create(n("OW"));
  await ob.putBlob({ name: "a" }, new Uint8Array(3));
  const w = await ob.watch({ includeHistory: true }),
    got = [],
    done = deferred();
  (async () => {
    for await (const i of w) {
      if (i === null) {
        got.push(null);
        continue;
      }
      got.push([i.name, i.deleted ?? false, i.isUpdate]);
      if (i.deleted) {
        done.resolve();
        break;
      }
    }
  })();
  await delay(100);
  await ob.putBlob({ name: "b" }, new Uint8Array(1));
  await ob.delete("b");
  await done;
  assert.deepEqual(
    got.filter((x) => x),
    [
      ["a", false, true],
      ["b", false, true],
      ["b", true, true],
    ],
  );
  await ob.destroy();
  await nc.close();
};

let bad = 0;
for (const [k, f] of Object.entries(tests)) {
  if (process.argv[2] && !k.includes(process.argv[2])) continue;
  const t = Date.now();
  try {
    await Promise.race([
      f(),
      delay(30_000).then(() => {
        throw new Error("timeout 30s");
      }),
    ]);
    console.log(`ok   ${k} ${(Date.now() - t) / 1000}s`);
  } catch (e) {
    bad++;
    console.log(`FAIL ${k}\n`, e.stack ?? e, e.code ?? "");
  }
}
process.exit(bad ? 1 : 0);
