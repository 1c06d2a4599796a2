"""Accepting a long job: once per idempotency key, and with what belongs to it on disk before it."""

import hashlib
import json

from app.errors import Problem, field_problem
from app.jobs import Speech, new_job_id
from app.schemas import LongBody
from tasks.books import Book
from tasks.idempotency import IdempotencyKeys, InFlight
from tasks.messages import Job, Kind, Piece
from tasks.webhooks import Delivery, Refused, Webhooks

MAX_KEY_CHARS = 255


def idempotency_key(header: str | None) -> str | None:
    """The key in an ``Idempotency-Key`` header, with or without the quotes of the draft.

    Raises:
        Problem: 400 for a key that is empty, too long or not printable.
    """
    if header is None:
        return None
    key = header[1:-1] if len(header) > 1 and header[0] == header[-1] == '"' else header
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        detail = f"Idempotency-Key must hold 1 to {MAX_KEY_CHARS} printable ASCII characters."
        raise Problem(400, detail)
    return key


class Accepting:
    """Makes long jobs, or finds the one that a key stands for."""

    def __init__(self, speech: Speech, keys: IdempotencyKeys, webhooks: Webhooks) -> None:
        self.speech = speech
        self.keys = keys
        self.webhooks = webhooks

    def accept(self, body: LongBody, owner: str, key: str | None) -> tuple[Job, list[Piece], bool]:
        """A job for this request, its pieces, and whether it was there already.

        Raises:
            Problem: 422 for a webhook that may not be, or a key used for another request; 409 for
                a key whose first request is not through yet; and whatever ``Speech.submit`` raises.
        """
        if key is None:
            return *self._make(body, owner, new_job_id()), False
        wanted = fingerprint(body)
        try:
            with self.keys.claim(owner, key) as claim:
                known = self.speech.find(claim.job_id) if claim.job_id else None
                if known is not None:
                    if claim.fingerprint != wanted:
                        detail = (
                            "This Idempotency-Key was used for another request; send a new one."
                        )
                        raise Problem(422, detail, job_id=claim.job_id)
                    return *known, True
                claim.remember(new_job_id(), wanted)
                try:
                    return *self._make(body, owner, claim.job_id), False
                except BaseException:
                    claim.forget()
                    raise
        except InFlight:
            detail = "A request with this Idempotency-Key is being handled; ask again in a moment."
            raise Problem(409, detail, retry_after_s=1) from None

    def _make(self, body: LongBody, owner: str, job_id: str) -> tuple[Job, list[Piece]]:
        records: list[Delivery | Book] = []
        if body.webhook_url is not None:
            try:
                self.webhooks.check(body.webhook_url)
            except Refused as refused:
                raise field_problem("webhook_url", body.webhook_url, str(refused)) from None
            records.append(Delivery(body.webhook_url))
        if body.title or body.author:
            records.append(Book(body.title, body.author))
        try:
            # Before the job: it may be over before the last line here is through.
            for record in records:
                record.save(self.speech.files.make_folder(job_id))
            return self.speech.submit(body, Kind.LONG, owner, job_id=job_id)
        except BaseException:
            self.speech.files.delete(job_id)
            raise


def fingerprint(body: LongBody) -> str:
    """The same for bodies that mean the same, however they are written, also before a version that
    knows more fields.
    """
    text = json.dumps(body.model_dump(exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
