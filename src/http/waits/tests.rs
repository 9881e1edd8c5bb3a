//! Each reason to wait, in a table, and which of two is told first.

use super::*;
use crate::condition::Hindrance;
use crate::domain::batch::{InputFile, Intent};
use crate::domain::id::{BatchId, FileId, Nonce, RequestId, SessionId};
use crate::domain::request::{Answered, Endpoint, Failure, FailureClass, Group, Source};
use crate::domain::room::{Closed, Learned};
use crate::domain::session::SessionFacts;
use uuid::Uuid;

const MINUTE: Duration = Duration::from_secs(60);

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_secs(1_795_000_000 + 60 * minutes)
}

fn group_of() -> Group {
    Group {
        company: "demo".parse().unwrap(),
        endpoint: Endpoint::ChatCompletions,
        model: "gpt-4o-mini".to_owned(),
    }
}

fn request(status: RequestStatus) -> Request {
    Request {
        id: RequestId::from_bytes([1; 16]),
        group: group_of(),
        source: Source::Generic { client_id: None },
        status,
        batch: None,
        line_bytes: 100,
        line_crc: 0,
        estimated_tokens: 25,
        output_max: None,
        inputs: 0,
        repair: None,
        stale: Vec::new(),
        misfits: 0,
        repairs: 0,
        metadata: None,
        priority: 0,
        not_before: None,
        requested_at: at(0),
        pending_since: at(0),
        completed_at: None,
        attempts: 0,
        failure: None,
        answered: Answered::default(),
        cost: None,
        history: Vec::new(),
    }
}

/// Everything works, and it is ten minutes after the request came in.
fn around() -> Around {
    Around {
        now: at(10),
        creation: true,
        rate_limited: None,
        polling: true,
        standing: Standing::new(),
        paused: None,
        pace: None,
        limits: Limits { requests_max: 100, bytes_max: 100_000, tokens_max: None, age_max: 30 * MINUTE },
        creation_interval: 10 * MINUTE,
        provider: ProviderIdentity::default(),
    }
}

fn group_now(requests: u64, room: Room) -> GroupNow {
    let waiting = cut::Waiting { requests, bytes: requests * 100, oldest: at(0) };
    let waits = GroupWaiting { group: group_of(), waiting, filling: None };
    GroupNow { suspended: false, waits: Some(waits), room, sharers: 1, newcomer: true, out_of_money: None }
}

fn closed(until: Timestamp, probe: Option<BatchId>) -> Room {
    let closed = Closed { until, times: 2, probe_max: 1000, probe };
    let learned = Some(Learned { tokens: 1000, at: at(1) });
    Room { closed: Some(closed), learned, ..Room::default() }
}

fn full(limit: u64, enqueued: u64) -> Room {
    Room { learned: Some(Learned { tokens: limit, at: at(1) }), enqueued, ..Room::default() }
}

type Expected = (For, Option<Timestamp>);

fn pending_as(request: &Request, group: GroupNow, around: &Around) -> Expected {
    let found = of_request(request, &Place::Pending(Box::new(group)), around).unwrap();
    assert!(found.since.is_some() && !found.detail.is_empty(), "{found:?}");
    (found.for_what, found.until)
}

#[test]
fn what_is_pending_waits_for_the_first_thing_that_holds_it_as_the_creator_asks() {
    let pending = request(RequestStatus::PendingBatching);
    let later = |minutes| Request { not_before: Some(at(minutes)), ..pending.clone() };
    let failure = Failure::new(FailureClass::Transient, "server_error", "");
    let failed = |minutes| Request { failure: Some(failure.clone()), ..later(minutes) };
    let put_off = |request: Request| Request { pending_since: at(9), ..request };
    let off = Around { creation: false, ..around() };
    let standing = Standing::from([(Hindrance::Disk, "full".to_owned())]);
    let hindered = Around { standing, ..around() };
    let old = Around { now: at(31), ..around() };
    let much_later = Around { now: at(60), ..around() };
    let now = around();
    let paused = Around { paused: Some(pause(Cause::Money)), ..around() };
    let plain = || group_now(5, Room::default());
    let suspended = || GroupNow { suspended: true, ..plain() };
    let mut filling = group_now(100, Room::default());
    filling.waits.as_mut().unwrap().filling = Some(BatchId::from_bytes([2; 16]));
    let gone = GroupNow { waits: None, ..plain() };
    let no_end: Option<Timestamp> = None;
    let cases: Vec<(Request, GroupNow, &Around, Expected)> = vec![
        (later(20), suspended(), &off, (For::SwitchedOff, no_end)),
        (later(20), suspended(), &hindered, (For::Hindrance, no_end)),
        (later(20), suspended(), &now, (For::CompanySuspended, no_end)),
        (later(20), plain(), &now, (For::NotBefore, Some(at(20)))),
        (failed(20), plain(), &now, (For::Backoff, Some(at(20)))),
        (failed(5), plain(), &now, (For::Interval, Some(at(15)))),
        (put_off(later(20)), plain(), &now, (For::TooManyModels, Some(at(20)))),
        (put_off(failed(20)), plain(), &now, (For::TooManyModels, Some(at(20)))),
        (pending.clone(), plain(), &now, (For::CountOrAge, Some(at(30)))),
        (pending.clone(), plain(), &old, (For::Interval, Some(at(40)))),
        (pending.clone(), plain(), &much_later, (For::Interval, no_end)),
        (pending.clone(), group_now(100, Room::default()), &now, (For::Interval, no_end)),
        (pending.clone(), group_now(1000, Room::default()), &now, (For::Interval, no_end)),
        (pending.clone(), filling, &now, (For::Interval, no_end)),
        (pending.clone(), gone, &now, (For::Interval, no_end)),
        (pending.clone(), group_now(100, closed(at(12), None)), &now, (For::Room, Some(at(12)))),
        (
            pending.clone(),
            group_now(100, closed(at(5), Some(BatchId::from_bytes([3; 16])))),
            &now,
            (For::Room, no_end),
        ),
        // The gate's time is over and nobody tries yet: this one may.
        (pending.clone(), group_now(100, closed(at(5), None)), &now, (For::Interval, no_end)),
        (pending.clone(), group_now(100, full(1000, 1000)), &now, (For::Room, no_end)),
        // Twenty are free, and one needs twenty-five.
        (pending.clone(), group_now(100, full(100, 80)), &now, (For::Room, no_end)),
        (pending.clone(), group_now(100, full(20, 0)), &now, (For::Interval, no_end)),
        // Not due, so the room is not looked at.
        (pending.clone(), group_now(5, full(1000, 1000)), &now, (For::CountOrAge, Some(at(30)))),
        // A pause of the account does not keep batches from being cut.
        (pending.clone(), group_now(100, Room::default()), &paused, (For::Interval, no_end)),
    ];
    for (number, (request, group, around, expected)) in cases.into_iter().enumerate() {
        assert_eq!(pending_as(&request, group, around), expected, "case {number}");
    }
}

fn pause(cause: Cause) -> Pause {
    Pause { cause, why: "the provider answers 401".to_owned(), since: at(3), tried: 1 }
}

fn input() -> InputFile {
    InputFile { id: FileId::new("file-1"), upload: 1, bytes: 0, created_at: at(1) }
}

fn intent() -> Intent {
    Intent { nonce: Nonce::new(Uuid::nil()), input: input(), at: at(2), made_with: Default::default() }
}

fn batch(state: BatchState) -> Batch {
    let id = BatchId::from_bytes([2; 16]);
    let mut batch = Batch::open(id, group_of(), ProviderIdentity::default(), at(1));
    batch.state = state;
    batch.counts.members = 10;
    batch.held_tokens = 100;
    batch
}

#[test]
fn what_is_in_a_batch_waits_for_what_its_batch_waits_for() {
    let wait = |until: Option<Timestamp>| Wait { until, why: Some("429".to_owned()), ..Wait::default() };
    let uploading = |until| batch(BatchState::Uploading { upload: 1, wait: wait(until) });
    let ready = |until| batch(BatchState::Ready { input: input(), wait: wait(until) });
    let observing = |missing| {
        let running = Running::InProgress;
        batch(BatchState::Observing { intent: intent(), running, wait: wait(Some(at(20))), missing })
    };
    let creating = batch(BatchState::Creating { intent: intent(), wait: wait(None) });
    let uncertain = batch(BatchState::Uncertain { intent: intent(), sweeps: 1 });
    let failure = Failure::new(FailureClass::Permanent, "invalid", "");
    let parked = batch(BatchState::Parked { upload: 1, failure });
    let mut elsewhere = observing(None);
    elsewhere.provider.kind = "openai".to_owned();
    let off = Around { creation: false, ..around() };
    let paused = |cause| Around { paused: Some(pause(cause)), ..around() };
    let waits = Waits { batches: 3, per_hour: 2000, left: 4 * MINUTE };
    let pace = Around { pace: Some(waits), ..around() };
    let limited = Around { rate_limited: Some(2 * MINUTE), pace: Some(waits), ..around() };
    let no_end: Option<Timestamp> = None;
    let none = Room::default;
    let cases: Vec<(Batch, Room, Around, Expected)> = vec![
        (uploading(None), none(), limited.clone(), (For::RateLimited, Some(at(12)))),
        (ready(None), none(), limited, (For::RateLimited, Some(at(12)))),
        (batch(BatchState::Filling), none(), off.clone(), (For::BatchStep, no_end)),
        (batch(BatchState::Sealed), none(), around(), (For::BatchStep, no_end)),
        (batch(BatchState::Sealed), none(), off.clone(), (For::SwitchedOff, no_end)),
        (uploading(Some(at(12))), none(), around(), (For::BatchStep, Some(at(12)))),
        (uploading(Some(at(9))), none(), around(), (For::BatchStep, no_end)),
        (uploading(None), none(), off.clone(), (For::SwitchedOff, no_end)),
        (uploading(None), none(), paused(Cause::Money), (For::PausedProvider, no_end)),
        (ready(None), none(), around(), (For::BatchStep, no_end)),
        (ready(None), none(), off.clone(), (For::SwitchedOff, no_end)),
        (ready(None), none(), paused(Cause::Gone), (For::PausedProvider, no_end)),
        (ready(None), none(), pace.clone(), (For::HourlyLimit, Some(at(14)))),
        (ready(None), closed(at(12), None), pace, (For::Room, Some(at(12)))),
        (ready(Some(at(11))), closed(at(12), None), around(), (For::Room, Some(at(11)))),
        (ready(Some(at(11))), none(), around(), (For::BatchStep, Some(at(11)))),
        (ready(None), full(150, 100), around(), (For::Room, Some(at(10).plus(LOOK_AGAIN)))),
        (ready(None), full(50, 0), around(), (For::Room, no_end)),
        // The call is out: nothing holds it any more.
        (creating, none(), off.clone(), (For::BatchStep, no_end)),
        (uncertain.clone(), none(), paused(Cause::Money), (For::BatchStep, no_end)),
        (uncertain, none(), paused(Cause::Key), (For::PausedProvider, no_end)),
        (parked, none(), off.clone(), (For::BatchStep, no_end)),
        (observing(None), none(), off, (For::Provider, no_end)),
        (elsewhere, none(), around(), (For::BatchStep, no_end)),
    ];
    for (number, (batch, room, around, expected)) in cases.into_iter().enumerate() {
        let place = Place::Batch(Box::new(BatchNow { batch, since: at(4), room, anomaly: None }));
        let found = of_request(&request(RequestStatus::BatchingInProgress), &place, &around).unwrap();
        assert_eq!((found.for_what, found.until), expected, "case {number}: {found:?}");
        assert_eq!(found.since, Some(at(4)), "case {number}");
        if found.for_what == For::HourlyLimit {
            assert!(
                !found.detail.contains("3 "),
                "how many of all companies wait is nobody's matter: {found:?}"
            );
        }
    }
}

#[test]
fn a_batch_that_runs_on_behind_its_window_is_told_so() {
    let running = Running::InProgress;
    let mut batch =
        batch(BatchState::Observing { intent: intent(), running, wait: Wait::default(), missing: None });
    batch.is_overdue = true;
    let now = BatchNow { batch, since: at(4), room: Room::default(), anomaly: None };
    let place = Place::Batch(Box::new(now));
    let found = of_request(&request(RequestStatus::BatchingInProgress), &place, &around()).unwrap();
    assert!(found.for_what == For::Provider && found.detail.contains("its window closed"), "{found:?}");
}

#[test]
fn a_batch_that_does_not_close_is_told_before_all_else() {
    let anomaly = Anomaly { at: at(6), what: "it has 2 members".to_owned() };
    let off = Around { creation: false, ..around() };
    let now = BatchNow {
        batch: batch(BatchState::Sealed),
        since: at(4),
        room: Room::default(),
        anomaly: Some(anomaly),
    };
    let place = Place::Batch(Box::new(now));
    let found = of_request(&request(RequestStatus::BatchingInProgress), &place, &off).unwrap();
    assert_eq!((found.for_what, found.since, found.until), (For::Anomaly, Some(at(6)), None));
    assert!(found.detail.contains("it has 2 members"), "{found:?}");
}

#[test]
fn what_is_over_waits_for_nothing_and_what_moves_meanwhile_is_told() {
    for over in [RequestStatus::ProcessingComplete, RequestStatus::ProcessingFailed] {
        assert_eq!(of_request(&request(over), &Place::Over, &around()), None);
    }
    let moved = of_request(&request(RequestStatus::BatchingInProgress), &Place::Over, &around());
    assert_eq!(moved.unwrap().for_what, For::BatchStep);
}

#[test]
fn a_session_waits_until_it_has_settled() {
    let session = |state| Session {
        id: SessionId::from_bytes([1; 16]),
        company: "demo".parse().unwrap(),
        external_id: "chat-1".to_owned(),
        version: 1,
        content_hash: [0; 32],
        facts: SessionFacts::default(),
        message_count: 2,
        state,
        changed_at: at(1),
        settles_at: Some(at(61)),
        request: None,
    };
    let waiting = of_session(&session(SessionState::Settling)).unwrap();
    assert_eq!((waiting.for_what, waiting.since, waiting.until), (For::Settle, Some(at(1)), Some(at(61))));
    assert_eq!(of_session(&session(SessionState::Empty)), None);
    assert_eq!(of_session(&session(SessionState::Requested)), None);
}
