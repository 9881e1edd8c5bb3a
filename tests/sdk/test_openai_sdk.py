"""The official OpenAI SDK against a running simulator.

Needs the packages of requirements.txt and NIGHTSHIFT_SIMULATOR_URL, such as http://127.0.0.1:8090/v1, of a simulator
whose batches end within a minute and take at least two seconds. Run it with: python tests/sdk/test_openai_sdk.py
"""

import json
import os
import time
import unittest

import openai

URL = os.environ.get("NIGHTSHIFT_SIMULATOR_URL", "")
DEADLINE_SECONDS = 120
TERMINAL = {"completed", "failed", "expired", "cancelled"}


def chat_line(number, **body):
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Question {number}?"}], **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class SdkTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not URL:
            raise RuntimeError("NIGHTSHIFT_SIMULATOR_URL is not set")
        base = URL.rstrip("/")
        base = base if base.endswith("/v1") else base + "/v1"
        cls.client = openai.OpenAI(api_key="test", base_url=base, max_retries=0)

    def upload(self, lines, name="input.jsonl"):
        return self.client.files.create(file=(name, jsonl(lines)), purpose="batch")

    def create(self, lines, endpoint="/v1/chat/completions", **more):
        file = self.upload(lines)
        return self.client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
        )

    def wait(self, batch, statuses=TERMINAL):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while batch.status not in statuses:
            self.assertLess(time.monotonic(), deadline, f"the batch is still {batch.status}")
            time.sleep(0.05)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def results(self, file_id):
        text = self.client.files.content(file_id).text
        self.assertTrue(text.endswith("\n"))
        lines = [json.loads(line) for line in text.splitlines()]
        return {line["custom_id"]: line for line in lines}

    def test_a_file_is_uploaded_found_listed_and_deleted(self):
        lines = [chat_line(n) for n in range(3)]
        file = self.client.files.create(
            file=("input.jsonl", jsonl(lines)),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        self.assertEqual((file.object, file.purpose, file.status), ("file", "batch", "processed"))
        self.assertEqual(file.bytes, len(jsonl(lines)))
        self.assertEqual(file.expires_at, file.created_at + 3600)
        self.assertEqual(self.client.files.retrieve(file.id), file)
        self.assertEqual(self.client.files.content(file.id).read(), jsonl(lines))
        self.assertIn(file.id, [found.id for found in self.client.files.list(purpose="batch", limit=2)])
        self.assertTrue(self.client.files.delete(file.id).deleted)
        for call in (self.client.files.retrieve, self.client.files.delete, self.client.files.content):
            with self.assertRaises(openai.NotFoundError):
                call(file.id)

    def test_a_batch_is_created_polled_and_read(self):
        lines = [chat_line(n) for n in range(4)] + [chat_line(4, messages=[])]
        batch = self.create(lines, metadata={"job": "sdk"})
        self.assertEqual(batch.status, "validating")
        self.assertEqual(batch.expires_at, batch.created_at + 24 * 60 * 60)
        self.assertEqual(batch.request_counts.total, 0)
        batch = self.wait(batch)
        self.assertEqual((batch.status, batch.metadata), ("completed", {"job": "sdk"}))
        self.assertEqual(batch.model, "gpt-4o-mini-simulated")
        counts = batch.request_counts
        self.assertEqual((counts.total, counts.completed, counts.failed), (5, 4, 1))
        self.assertEqual(batch.usage.total_tokens, batch.usage.input_tokens + batch.usage.output_tokens)
        self.assertGreater(batch.usage.output_tokens, 0)
        output = self.results(batch.output_file_id)
        self.assertEqual(set(output), {f"line-{n}" for n in range(4)})
        for line in output.values():
            self.assertIsNone(line["error"])
            self.assertEqual(line["response"]["status_code"], 200)
            answer = openai.types.chat.ChatCompletion.model_validate(line["response"]["body"])
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            self.assertEqual(answer.system_fingerprint, "fp_nightshift_simulator")
        errors = self.results(batch.error_file_id)
        self.assertEqual(set(errors), {"line-4"})
        self.assertEqual(errors["line-4"]["response"]["status_code"], 400)
        self.assertIsNone(errors["line-4"]["error"])
        with self.assertRaises(openai.ConflictError):
            self.client.batches.cancel(batch.id)

    def test_responses_and_embeddings_have_their_own_shapes(self):
        body = {"model": "gpt-4o-mini", "input": "Name a lake."}
        asked = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
        batch = self.create([asked], "/v1/responses")
        body = {"model": "text-embedding-3-small", "input": ["a", "b"]}
        embedded = {"custom_id": "b", "method": "POST", "url": "/v1/embeddings", "body": body}
        embedding = self.create([embedded], "/v1/embeddings")
        output = self.results(self.wait(batch).output_file_id)
        answer = openai.types.responses.Response.model_validate(output["a"]["response"]["body"])
        self.assertEqual(answer.status, "completed")
        self.assertIn("Name a lake.", answer.output_text)
        output = self.results(self.wait(embedding).output_file_id)
        answer = openai.types.CreateEmbeddingResponse.model_validate(output["b"]["response"]["body"])
        self.assertEqual([len(item.embedding) for item in answer.data], [8, 8])

    def test_a_schema_is_answered_by_its_shape(self):
        schema = {
            "type": "object",
            "properties": {
                "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
                "questions": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            },
            "required": ["sentiment", "questions"],
            "additionalProperties": False,
        }
        response_format = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
        messages = [{"role": "user", "content": "User: Thanks! Where is my badge?"}]
        batch = self.wait(self.create([chat_line(0, messages=messages, response_format=response_format)]))
        line = self.results(batch.output_file_id)["line-0"]
        content = json.loads(line["response"]["body"]["choices"][0]["message"]["content"])
        self.assertEqual(content, {"sentiment": "positive", "questions": ["Where is my badge?"]})

    def test_a_list_is_paged_through(self):
        made = [self.create([chat_line(0)]).id for _ in range(5)]
        page = self.client.batches.list(limit=2)
        self.assertEqual(len(page.data), 2)
        self.assertTrue(page.has_more)
        for limit in (1, 2):
            found = [batch.id for batch in self.client.batches.list(limit=limit)]
            self.assertEqual(found[:5], made[::-1])
            self.assertEqual(len(found), len(set(found)))

    def test_a_running_batch_is_cancelled(self):
        batch = self.wait(self.create([chat_line(n) for n in range(100)]), {"in_progress"})
        cancelled = self.client.batches.cancel(batch.id)
        self.assertEqual(cancelled.status, "cancelling")
        cancelled = self.wait(cancelled)
        self.assertEqual(cancelled.status, "cancelled")
        self.assertEqual(self.client.batches.cancel(batch.id).status, "cancelled")
        output = self.results(cancelled.output_file_id) if cancelled.output_file_id else {}
        errors = self.results(cancelled.error_file_id)
        self.assertEqual(len(output) + len(errors), 100)
        self.assertEqual({line["error"]["code"] for line in errors.values()}, {"batch_cancelled"})

    def test_a_bad_file_fails_its_batch(self):
        batch = self.wait(self.create([chat_line(0), chat_line(0)]))
        self.assertEqual(batch.status, "failed")
        self.assertEqual((batch.errors.data[0].code, batch.errors.data[0].line), ("duplicate_custom_id", 2))
        self.assertIsNone(batch.output_file_id)
        gone = self.client.batches.create(
            input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
        )
        self.assertEqual(self.wait(gone).errors.data[0].param, "file_id")

    def test_what_is_wrong_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.upload([chat_line(0)], name="input.txt")
        self.assertIn("Must be .jsonl", str(refused.exception))
        with self.assertRaises(openai.BadRequestError):
            self.client.files.create(file=("empty.jsonl", b""), purpose="batch")
        with self.assertRaises(openai.BadRequestError) as refused:
            self.client.batches.create(
                input_file_id="file-none", endpoint="/v1/odd", completion_window="24h"
            )
        self.assertEqual(refused.exception.param, "endpoint")
        with self.assertRaises(openai.NotFoundError):
            self.client.batches.retrieve("batch_none")
        with self.assertRaises(openai.NotFoundError):
            self.client.batches.cancel("batch_none")
        with self.assertRaises(openai.AuthenticationError):
            headers = {"Authorization": ""}
            self.client.files.list(extra_headers=headers)


if __name__ == "__main__":
    unittest.main()
