"""Sends a file of requests or sessions (one JSON object a line), waits, and prints what came of each as a line.

    NIGHTSHIFT_URL=http://127.0.0.1:8080 NIGHTSHIFT_TOKEN=ns_… python3 client.py demo requests in.ndjson > out.ndjson

The same file can be sent again: what is there already is not asked twice. Exit code 1: something was refused or failed.
"""
import gzip, hashlib, itertools, json, os, sys, time, urllib.error, urllib.parse, urllib.request


def call(path, body=None, **headers):
    request = urllib.request.Request(f"{base}/{path}", body, {"Authorization": f"Bearer {token}", **headers})
    for left in reversed(range(100)):
        try:
            return json.load(urllib.request.urlopen(request, timeout=300))
        except urllib.error.HTTPError as err:
            if err.code not in (429, 503) or not left:
                sys.exit(err.read().decode())
            time.sleep(int(err.headers.get("Retry-After", 5)))  # too much, or not now


(company, kind, file), token = sys.argv[1:], os.environ["NIGHTSHIFT_TOKEN"]
base, ids, bad = f"{os.environ['NIGHTSHIFT_URL']}/api/v1/companies/{company}", [], 0
with open(file, "rb") as lines:
    for number, chunk in enumerate(iter(lambda: list(itertools.islice(lines, 1000)), [])):  # a reply names so many ids
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip",
                   "Idempotency-Key": hashlib.sha256(b"%d:%s" % (number, b"".join(chunk))).hexdigest()}
        reply = call(kind, gzip.compress(b"".join(chunk)), **headers)
        print({name: reply[name] for name in ("accepted", "duplicate", "errors")}, file=sys.stderr)
        bad, refused = bad + reply["rejected"], [error["line"] for error in reply["errors"]]
        taken = [json.loads(line) for at, line in enumerate(chunk, 1) if line.strip() and at not in refused]
        ids += [one["id"] for one in reply["requests"]] if kind == "requests" else [one["externalId"] for one in taken]
for path in [f"{kind}/{urllib.parse.quote(id, '')}" for id in ids]:
    while (state := (one := call(path)[kind[:-1]]).get("status", one.get("state"))) in (
            "pending_batching", "batching_in_progress", "settling", "requested"):
        time.sleep(2)
    print(json.dumps(one), flush=True)
    bad += "failed" in state
sys.exit(bad > 0)
