//! The machine, event by event.

use super::*;
use crate::domain::batch::{Closing, Credentials, InputFile, Problem, ResultKind, Running, Terminal};
use crate::domain::event::{Observation, ObservedStatus, Trouble};
use crate::domain::id::Nonce;
use crate::domain::request::{Failure, FailureClass};

const POLICY: Policy =
    Policy { backoff: Duration::from_secs(60), capacity_backoff: Duration::from_secs(60), sweeps_min: 3 };

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(secs)
}

fn input(upload: u32) -> InputFile {
    InputFile { id: FileId::new(format!("file-{upload}")), upload, bytes: 0, created_at: at(0) }
}

fn intent(upload: u32) -> Intent {
    Intent {
        nonce: Nonce::from_bytes([7; 16]),
        input: input(upload),
        at: at(1),
        made_with: Credentials::default(),
    }
}

fn creating() -> BatchState {
    BatchState::Creating { intent: intent(1), wait: Wait::default() }
}

fn observing() -> BatchState {
    BatchState::Observing {
        intent: intent(1),
        running: Running::Validating,
        wait: Wait::default(),
        missing: None,
    }
}

fn seen(status: ObservedStatus) -> Observation {
    Observation {
        id: ProviderBatchId::new("batch_1"),
        status: Some(status),
        output: None,
        error: None,
        completed_lines: Some(0),
        failed_lines: Some(0),
        problems: Vec::new(),
        expires_at: None,
        ended_at: None,
    }
}

fn ended(how: Terminal) -> Observation {
    seen(ObservedStatus::Ended(how))
}

fn observed(seen: Observation, secs: i64) -> Event {
    Event::Observed { seen, at: at(secs) }
}

fn take(state: &BatchState, event: &Event) -> Step {
    step(state, Orders::default(), event, &POLICY).unwrap()
}

fn uncertain() -> Trouble {
    Trouble::Uncertain { why: "reset".to_owned() }
}

fn refused() -> Trouble {
    Trouble::Refused(Failure::new(FailureClass::Permanent, "bad", "no"))
}

fn create_failed(trouble: Trouble) -> Event {
    Event::CreateFailed { trouble, input_gone: false, at: at(10) }
}

#[test]
fn an_uncertain_create_call_is_looked_for_and_never_sent_again_at_once() {
    let step = take(&creating(), &create_failed(uncertain()));
    assert_eq!(step.next, BatchState::Uncertain { intent: intent(1), sweeps: 0 });
    assert_eq!(step.effects, [Effect::Sweep(intent(1))]);
}

#[test]
fn a_restart_that_finds_an_intent_searches_first() {
    assert_eq!(resume(&creating(), Orders::default()), [Effect::Sweep(intent(1))]);
}

#[test]
fn what_a_search_finds_is_adopted() {
    let found = Some(seen(ObservedStatus::Running(Running::InProgress)));
    let step = take(&creating(), &Event::Swept { complete: false, grace_over: false, found });
    assert!(step.changes.contains(&Change::Adopt(ProviderBatchId::new("batch_1"))));
    assert_eq!(step.next.status(), crate::domain::batch::BatchStatus::InProgress);
}

#[test]
fn not_found_takes_three_complete_searches_and_the_grace_and_then_the_old_file_goes_first() {
    let mut state = creating();
    let swept = |complete, grace_over| Event::Swept { complete, grace_over, found: None };
    for (complete, grace_over) in [(true, true), (false, true), (true, true), (true, false)] {
        state = take(&state, &swept(complete, grace_over)).next;
        assert!(matches!(state, BatchState::Uncertain { .. }));
    }
    let step = take(&state, &swept(true, true));
    assert_eq!(step.effects, [Effect::Fence(intent(1))]);
    let step = take(&step.next, &Event::Fenced);
    assert_eq!(step.effects, [Effect::Sweep(intent(1))]);
    let step = take(&step.next, &swept(false, true));
    assert_eq!(step.effects, [Effect::Sweep(intent(1))]);
    let step = take(&step.next, &swept(true, true));
    assert_eq!(step.effects, [Effect::UploadInput { upload: 2 }]);
    assert!(step.changes.contains(&Change::Supersede(intent(1))));
}

#[test]
fn a_list_that_proves_nothing_is_told_of_and_counts_for_nothing() {
    for (state, sweeps) in [(creating(), 0), (BatchState::Uncertain { intent: intent(1), sweeps: 2 }, 2)] {
        let step = take(&state, &Event::ListUnproven);
        assert_eq!(step.next, BatchState::Uncertain { intent: intent(1), sweeps });
        assert_eq!(step.effects, [Effect::Sweep(intent(1))]);
        let story = step.story.unwrap();
        assert!(story.contains("file-1") && story.contains("`nightshift resume`"), "{story}");
    }
    let running = step(&observing(), Orders::default(), &Event::ListUnproven, &POLICY);
    assert!(running.is_err(), "nobody searches for what is there");
}

#[test]
fn a_rate_limit_keeps_the_file_and_waits_as_long_as_it_is_asked_to() {
    let trouble = Trouble::Later { retry_after_ms: Some(300_000), why: "429".to_owned() };
    let step = take(&creating(), &create_failed(trouble));
    let BatchState::Ready { input: file, wait } = &step.next else { panic!("{:?}", step.next) };
    assert_eq!((file, wait.until), (&input(1), Some(at(310))));
    assert_eq!(take(&step.next, &Event::WaitEnded).effects, [Effect::MakeIntent]);
}

#[test]
fn three_refusals_park_the_batch_with_its_members() {
    let mut state = creating();
    for _ in 0..2 {
        let step = take(&state, &create_failed(refused()));
        let BatchState::Ready { .. } = step.next else { panic!("{:?}", step.next) };
        state = take(&step.next, &Event::IntentMade(intent(1))).next;
    }
    let step = take(&state, &create_failed(refused()));
    assert!(matches!(step.next, BatchState::Parked { .. }));
    assert_eq!(resume(&step.next, Orders::default()), [Effect::Unpark]);
    let step = take(&step.next, &Event::Unparked);
    assert_eq!(step.effects, [Effect::FindOrUploadInput { upload: 1 }]);
}

#[test]
fn an_outage_between_two_refusals_does_not_make_them_forgotten_nor_count_itself() {
    let later = Trouble::Later { retry_after_ms: None, why: "down".to_owned() };
    let mut state = creating();
    for trouble in [refused(), later.clone(), later.clone(), later, refused()] {
        let step = take(&state, &create_failed(trouble));
        assert!(matches!(step.next, BatchState::Ready { .. }), "{:?}", step.next);
        state = take(&step.next, &Event::IntentMade(intent(1))).next;
    }
    assert!(matches!(take(&state, &create_failed(refused())).next, BatchState::Parked { .. }));
}

#[test]
fn an_input_file_that_is_gone_is_uploaded_again_after_a_pause_that_grows_and_five_times_at_most() {
    let event = Event::CreateFailed { trouble: refused(), input_gone: true, at: at(10) };
    let mut pauses = Vec::new();
    for number in 1..Policy::UPLOADS_MAX {
        let creating = BatchState::Creating { intent: intent(number), wait: Wait::default() };
        let step = take(&creating, &event);
        let BatchState::Uploading { upload, wait } = &step.next else { panic!("{:?}", step.next) };
        assert_eq!((*upload, &step.effects[..]), (number + 1, &[Effect::WakeAt(wait.until.unwrap())][..]));
        pauses.push(wait.until.unwrap().since(at(10)).as_secs());
        let woken = take(&step.next, &Event::WaitEnded);
        assert_eq!(woken.effects, [Effect::FindOrUploadInput { upload: number + 1 }]);
    }
    assert!(pauses.is_sorted() && pauses[0] > 0 && pauses[0] < pauses[3], "{pauses:?}");
    let creating = BatchState::Creating { intent: intent(Policy::UPLOADS_MAX), wait: Wait::default() };
    let step = take(&creating, &event);
    assert!(matches!(&step.next, BatchState::Parked { failure, .. } if failure.code == "input_gone"));
}

#[test]
fn a_refusal_for_want_of_room_that_comes_at_once_gives_the_requests_back_and_closes_the_gate() {
    for (code, words) in
        [("token_limit_exceeded", ""), ("invalid_request", "Enqueued token limit reached for m.")]
    {
        let failure = Failure::new(FailureClass::Permanent, code, words);
        let step = take(&creating(), &create_failed(Trouble::Refused(failure)));
        let BatchState::Dissolving { then: Then::Requeue, failure } = &step.next else {
            panic!("{:?}", step.next)
        };
        assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Capacity, code));
        assert!(step.changes.contains(&Change::NoRoom { first: Duration::from_secs(60) }));
        assert!(!step.story.unwrap().contains("Enqueued"), "the provider's words are no matter for the log");
    }
}

#[test]
fn what_is_refused_three_times_at_the_call_itself_is_halved_as_far_as_it_may_be_a_request() {
    let at_fault = Orders { at_fault: true, ..Orders::default() };
    let wait = Wait { until: None, why: None, failures: 2, refusals: 2 };
    let uploading = BatchState::Uploading { upload: 1, wait: wait.clone() };
    let creating = BatchState::Creating { intent: intent(1), wait };
    let upload_failed = Event::UploadFailed { trouble: refused(), at: at(10) };
    for (state, event) in [(uploading, upload_failed), (creating, create_failed(refused()))] {
        assert!(matches!(take(&state, &event).next, BatchState::Parked { .. }));
        let step = step(&state, at_fault, &event, &POLICY).unwrap();
        let BatchState::Dissolving { failure, .. } = step.next else { panic!("{:?}", step.next) };
        assert_eq!(
            (failure.class, failure.code.as_str()),
            (FailureClass::Transient, "batch_refused_for_a_line")
        );
    }
}

#[test]
fn an_input_file_with_an_erased_line_is_uploaded_without_it_and_its_refusals_count_on() {
    let wait = Wait { until: None, why: None, failures: 3, refusals: 1 };
    let ready = BatchState::Ready { input: input(1), wait: wait.clone() };
    let step = take(&ready, &Event::InputOutdated);
    assert_eq!(step.next, BatchState::Uploading { upload: 2, wait });
    assert_eq!(step.effects, [Effect::UploadInput { upload: 2 }]);
}

#[test]
fn a_status_is_never_shown_going_back() {
    let state = take(&observing(), &observed(seen(ObservedStatus::Running(Running::Finalizing)), 5)).next;
    let back = observed(seen(ObservedStatus::Running(Running::Validating)), 6);
    assert!(take(&state, &back).changes_nothing(&state));
    let unknown = observed(Observation { status: None, ..ended(Terminal::Completed) }, 7);
    assert!(take(&state, &unknown).changes_nothing(&state));
}

#[test]
fn every_terminal_status_has_its_files_read_failed_too() {
    for how in [Terminal::Completed, Terminal::Failed, Terminal::Expired, Terminal::Cancelled] {
        let files =
            Observation { output: Some(FileId::new("out")), error: Some(FileId::new("err")), ..ended(how) };
        let mut step = take(&observing(), &observed(files, 5));
        for (kind, id) in [(ResultKind::Output, "out"), (ResultKind::Error, "err")] {
            assert_eq!(step.effects, [Effect::Download { kind, file: FileId::new(id) }], "{how:?}");
            step = take(&step.next, &Event::Downloaded { kind, torn: false });
            assert_eq!(step.effects, [Effect::ApplyLines { kind, offset: 0 }]);
            step = take(&step.next, &Event::LinesRead { kind, from: 0, to: 99, end: false });
            assert_eq!(step.effects, [Effect::ApplyLines { kind, offset: 99 }]);
            step = take(&step.next, &Event::LinesRead { kind, from: 99, to: 99, end: true });
        }
        assert_eq!(step.effects, [Effect::CloseChunk]);
    }
}

#[test]
fn a_missing_output_id_is_asked_for_again_for_ten_minutes() {
    let early = Observation { completed_lines: Some(3), ..ended(Terminal::Completed) };
    let state = take(&observing(), &observed(early.clone(), 0)).next;
    assert!(matches!(state, BatchState::Settling { .. }));
    let still = take(&state, &observed(early.clone(), 599)).next;
    assert!(matches!(still, BatchState::Settling { .. }));
    // What an old answer says takes nothing back and ends nothing.
    let old = Observation { completed_lines: None, ..seen(ObservedStatus::Running(Running::InProgress)) };
    assert_eq!(take(&still, &observed(old, 599)).next, still);
    let forgetful = Observation { completed_lines: None, failed_lines: None, ..early.clone() };
    assert_eq!(take(&still, &observed(forgetful, 599)).next, still);
    let there = Observation { output: Some(FileId::new("out")), ..early.clone() };
    assert!(matches!(take(&still, &observed(there, 599)).next, BatchState::Downloading { lost: false, .. }));
    assert!(matches!(take(&still, &observed(early, 600)).next, BatchState::Closing { lost: true, .. }));
}

#[test]
fn an_error_file_is_no_proof_that_nothing_was_completed_where_nothing_is_counted() {
    let error = Observation { error: Some(FileId::new("err")), ..ended(Terminal::Completed) };
    let uncounted = Observation { completed_lines: None, failed_lines: None, ..error.clone() };
    for how in [Terminal::Completed, Terminal::Expired, Terminal::Cancelled] {
        let seen = Observation { status: Some(ObservedStatus::Ended(how)), ..uncounted.clone() };
        assert!(
            matches!(take(&observing(), &observed(seen, 0)).next, BatchState::Settling { .. }),
            "{how:?}"
        );
    }
    let state = take(&observing(), &observed(uncounted.clone(), 0)).next;
    // What a batch that was worked through has in no file was presumably paid for.
    let late = take(&state, &observed(uncounted, 600)).next;
    assert!(matches!(late, BatchState::Downloading { kind: ResultKind::Error, lost: true, .. }), "{late:?}");
    let counted = Observation { completed_lines: Some(0), failed_lines: Some(3), ..error };
    let next = take(&observing(), &observed(counted, 0)).next;
    assert!(matches!(next, BatchState::Downloading { kind: ResultKind::Error, lost: false, .. }), "{next:?}");
}

#[test]
fn a_batch_that_runs_on_long_after_its_window_is_told_of_once_and_waited_for() {
    let late = Policy::OVERDUE_AFTER.as_secs() as i64;
    let running =
        Observation { expires_at: Some(at(100)), ..seen(ObservedStatus::Running(Running::InProgress)) };
    let overdue = |step: &Step| step.changes.contains(&Change::Overdue);
    assert!(!overdue(&take(&observing(), &observed(running.clone(), 100 + late - 1))));
    let told = take(&observing(), &observed(running.clone(), 100 + late));
    assert!(overdue(&told) && matches!(told.next, BatchState::Observing { .. }));
    let orders = Orders { is_overdue: true, ..Orders::default() };
    let again = step(&told.next, orders, &observed(running, 200 + late), &POLICY).unwrap();
    assert!(again.changes_nothing(&told.next), "{again:?}");
}

#[test]
fn a_failed_batch_that_counts_lines_ran_and_its_files_are_waited_for() {
    let ran = Observation { completed_lines: Some(400), ..ended(Terminal::Failed) };
    assert!(matches!(take(&observing(), &observed(ran, 0)).next, BatchState::Settling { .. }));
    let bare = Observation { completed_lines: None, failed_lines: None, ..ended(Terminal::Completed) };
    assert!(matches!(take(&observing(), &observed(bare, 0)).next, BatchState::Settling { .. }));
    assert!(matches!(
        take(&observing(), &observed(ended(Terminal::Cancelled), 0)).next,
        BatchState::Closing { .. }
    ));
}

fn turned_away(code: &str) -> Event {
    let problem = Problem { code: Some(code.to_owned()), ..Problem::default() };
    observed(Observation { problems: vec![problem], ..ended(Terminal::Failed) }, 0)
}

#[test]
fn no_room_at_the_provider_gives_the_requests_back_and_closes_the_gate() {
    let step = take(&observing(), &turned_away("token_limit_exceeded"));
    assert_eq!(step.effects, [Effect::CloseChunk]);
    assert!(step.changes.contains(&Change::NoRoom { first: Duration::from_secs(60) }));
    assert!(!step.changes.contains(&Change::Admitted));
}

#[test]
fn words_that_nobody_knows_are_tried_three_times_and_then_wait_for_the_operator() {
    let mut state = observing();
    for _ in 0..2 {
        let step = take(&state, &turned_away("something_new"));
        assert!(matches!(step.next, BatchState::Ready { .. }), "{:?}", step.next);
        let next = take(&step.next, &Event::IntentMade(intent(1))).next;
        state = take(&next, &Event::Created(seen(ObservedStatus::Running(Running::Validating)))).next;
    }
    assert!(matches!(take(&state, &turned_away("something_new")).next, BatchState::Parked { .. }));
    // Where it is a request and not the account, smaller batches find it.
    let at_fault = Orders { at_fault: true, ..Orders::default() };
    let step = step(&state, at_fault, &turned_away("something_new"), &POLICY).unwrap();
    assert_eq!(step.effects, [Effect::CloseChunk]);
    let step = super::step(&observing(), at_fault, &turned_away("something_new"), &POLICY).unwrap();
    assert!(matches!(step.next, BatchState::Ready { .. }), "only after it was refused three times");
}

#[test]
fn a_refused_account_pauses_and_the_same_file_is_sent_again() {
    let step = take(&observing(), &turned_away("insufficient_quota"));
    assert!(matches!(&step.next, BatchState::Ready { input: file, .. } if *file == input(1)));
    assert!(step.effects.iter().any(|effect| matches!(effect, Effect::PauseAccount { .. })));
}

#[test]
fn a_batch_in_progress_was_admitted() {
    let running = observed(seen(ObservedStatus::Running(Running::InProgress)), 5);
    assert!(take(&observing(), &running).changes.contains(&Change::Admitted));
    let files = Observation { output: Some(FileId::new("out")), ..ended(Terminal::Completed) };
    assert!(take(&observing(), &observed(files, 5)).changes.contains(&Change::Admitted));
}

#[test]
fn a_batch_that_the_provider_does_not_know_is_lost_only_after_half_an_hour_and_five_answers() {
    let mut state = observing();
    for secs in [0, 10, 20, 1700] {
        state = take(&state, &Event::NotKnown { at: at(secs) }).next;
        assert!(matches!(state, BatchState::Observing { .. }));
    }
    assert!(matches!(take(&state, &Event::NotKnown { at: at(1799) }).next, BatchState::Observing { .. }));
    let step = take(&state, &Event::NotKnown { at: at(1800) });
    assert!(matches!(step.next, BatchState::Closing { lost: true, .. }));
    // Seen once, it counts from the start again.
    let seen = take(&state, &observed(seen(ObservedStatus::Running(Running::Validating)), 1750)).next;
    assert_eq!(seen, observing());
}

fn cancel(then: Then) -> Event {
    Event::CancelAsked(Cancel { by: "ops".to_owned(), at: at(50), then })
}

fn under(then: Then) -> Orders {
    Orders { cancel: Some(then), ..Orders::default() }
}

#[test]
fn a_cancel_before_the_create_call_dissolves_the_batch_here() {
    let unsent = [
        BatchState::Filling,
        BatchState::Sealed,
        BatchState::Uploading { upload: 1, wait: Wait::default() },
        BatchState::Ready { input: input(1), wait: Wait::default() },
        BatchState::Parked { upload: 1, failure: Failure::new(FailureClass::Permanent, "bad", "") },
    ];
    for state in unsent {
        let cancelled = take(&state, &cancel(Then::End));
        assert!(matches!(cancelled.next, BatchState::Dissolving { then: Then::End, .. }), "{state:?}");
        assert_eq!(cancelled.effects, [Effect::CloseChunk]);
        assert_eq!(resume(&cancelled.next, under(Then::End)), [Effect::CloseChunk]);
        let late = [
            Event::Uploaded(input(1)),
            Event::UploadFailed { trouble: uncertain(), at: at(60) },
            Event::IntentMade(intent(1)),
            Event::WaitEnded,
            Event::Released,
            Event::RoomShut { until: at(99) },
        ];
        for event in late {
            let late = step(&cancelled.next, under(Then::End), &event, &POLICY).unwrap();
            assert_eq!(late.next, cancelled.next, "{event:?}");
        }
        let closed = step(
            &cancelled.next,
            under(Then::End),
            &Event::ChunkClosed { remaining: false, at: at(61) },
            &POLICY,
        );
        assert_eq!(closed.unwrap().next, BatchState::Cleaning { closing: Closing::Cancelled });
    }
}

#[test]
fn a_cancel_while_the_submission_is_open_waits_until_that_is_known() {
    for state in [
        creating(),
        BatchState::Uncertain { intent: intent(1), sweeps: 0 },
        BatchState::Fencing { intent: intent(1), gone: true },
    ] {
        let cancelled = take(&state, &cancel(Then::Requeue));
        assert_eq!(cancelled.next, state);
        assert!(matches!(cancelled.changes.as_slice(), [Change::Cancel(_)]));
        let found = Some(seen(ObservedStatus::Running(Running::InProgress)));
        let swept = |found| Event::Swept { complete: true, grace_over: true, found };
        let step = step(&state, under(Then::Requeue), &swept(found), &POLICY).unwrap();
        assert!(matches!(step.next, BatchState::Observing { .. }));
        assert!(step.effects.contains(&Effect::CancelRemote), "{state:?}");
    }
    let fenced = BatchState::Fencing { intent: intent(1), gone: true };
    let nothing = Event::Swept { complete: true, grace_over: true, found: None };
    let step = step(&fenced, under(Then::Requeue), &nothing, &POLICY).unwrap();
    assert!(matches!(step.next, BatchState::Dissolving { then: Then::Requeue, .. }));
    assert!(step.changes.contains(&Change::Supersede(intent(1))));
    assert_eq!(step.effects, [Effect::CloseChunk]);
}

#[test]
fn a_refused_create_call_of_a_cancelled_batch_is_not_tried_again() {
    for event in [
        create_failed(refused()),
        create_failed(Trouble::Account { why: "401".to_owned() }),
        Event::CreateFailed { trouble: refused(), input_gone: true, at: at(10) },
    ] {
        let step = step(&creating(), under(Then::End), &event, &POLICY).unwrap();
        assert!(matches!(step.next, BatchState::Dissolving { then: Then::End, .. }), "{event:?}");
    }
    let step = step(&creating(), under(Then::End), &create_failed(uncertain()), &POLICY).unwrap();
    assert!(matches!(step.next, BatchState::Uncertain { .. }));
}

#[test]
fn a_cancel_of_a_running_batch_goes_to_the_provider_and_its_results_are_taken_in() {
    let cancelled = take(&observing(), &cancel(Then::Requeue));
    assert_eq!((&cancelled.next, cancelled.effects.as_slice()), (&observing(), &[Effect::CancelRemote][..]));
    assert_eq!(resume(&observing(), under(Then::Requeue)), [Effect::CancelRemote, Effect::Observe]);
    let files = Observation { output: Some(FileId::new("out")), ..ended(Terminal::Cancelled) };
    let step = step(&observing(), under(Then::Requeue), &observed(files, 60), &POLICY).unwrap();
    assert!(matches!(step.next, BatchState::Downloading { .. }));
}

#[test]
fn a_cancelled_batch_that_is_not_admitted_is_not_sent_again() {
    for code in ["insufficient_quota", "something_new"] {
        let step = step(&observing(), under(Then::Requeue), &turned_away(code), &POLICY).unwrap();
        assert!(matches!(step.next, BatchState::Dissolving { .. }), "{code}: {:?}", step.next);
    }
}

#[test]
fn what_is_over_cannot_be_cancelled() {
    let closing = Closing::Processed;
    for state in [BatchState::Cleaning { closing }, BatchState::Closed { closing }] {
        assert!(step(&state, Orders::default(), &cancel(Then::End), &POLICY).is_err());
    }
}

#[test]
fn a_batch_that_was_not_cut_here_is_never_sent_again() {
    let found = Orders { never_sent: true, ..Orders::default() };
    let gone = Problem {
        code: Some("invalid_request".to_owned()),
        param: Some("file_id".to_owned()),
        ..Problem::default()
    };
    let failed = Observation { problems: vec![gone], ..ended(Terminal::Failed) };
    let step = step(&observing(), found, &observed(failed, 5), &POLICY).unwrap();
    assert!(matches!(step.next, BatchState::Dissolving { then: Then::Requeue, .. }));
}

#[test]
fn without_room_it_waits_and_tells_so_once() {
    let ready = BatchState::Ready { input: input(1), wait: Wait::default() };
    let first = take(&ready, &Event::RoomShut { until: at(30) });
    assert!(first.story.is_some() && first.effects == [Effect::WakeAt(at(30))]);
    let second = take(&first.next, &Event::RoomShut { until: at(60) });
    assert!(second.story.is_none() && second.effects == [Effect::WakeAt(at(60))]);
    let failure = Failure::new(FailureClass::Capacity, "too_large_for_room", "");
    let back = take(&second.next, &Event::GivenBack(failure));
    assert!(matches!(back.next, BatchState::Dissolving { then: Then::Requeue, .. }));
    assert!(step(&observing(), Orders::default(), &Event::RoomShut { until: at(1) }, &POLICY).is_err());
}

#[test]
fn a_result_file_that_is_refused_for_half_an_hour_is_lost_but_an_outage_waits() {
    let files = Observation { output: Some(FileId::new("out")), ..ended(Terminal::Completed) };
    let failed = |trouble| Event::DownloadFailed { kind: ResultKind::Output, trouble, at: at(10) };
    let mut state = take(&observing(), &observed(files, 5)).next;
    for _ in 0..20 {
        state = take(&state, &failed(Trouble::Later { retry_after_ms: None, why: "down".to_owned() })).next;
        assert!(matches!(state, BatchState::Downloading { .. }));
    }
    let mut waited = Duration::ZERO;
    for _ in 1..Policy::DOWNLOAD_REFUSALS_MAX {
        state = take(&state, &failed(refused())).next;
        let BatchState::Downloading { wait, .. } = &state else { panic!("{state:?}") };
        waited += wait.until.unwrap().since(at(10));
    }
    assert!(waited >= Duration::from_secs(1800), "{waited:?}");
    assert!(matches!(take(&state, &failed(refused())).next, BatchState::Closing { lost: true, .. }));
}

#[test]
fn a_lost_copy_is_fetched_again_and_read_from_its_start() {
    let files = Observation { output: Some(FileId::new("out")), ..ended(Terminal::Completed) };
    let mut state = take(&observing(), &observed(files, 5)).next;
    let kind = ResultKind::Output;
    for event in [
        Event::Downloaded { kind, torn: false },
        Event::LinesRead { kind, from: 0, to: 70, end: false },
        Event::CopyLost { kind },
    ] {
        state = take(&state, &event).next;
    }
    let step = take(&state, &Event::Downloaded { kind, torn: false });
    assert_eq!(step.effects, [Effect::ApplyLines { kind, offset: 0 }]);
}

#[test]
fn a_chunk_from_another_place_of_the_file_is_a_bug() {
    let files = Observation { output: Some(FileId::new("out")), ..ended(Terminal::Completed) };
    let kind = ResultKind::Output;
    let state = take(&observing(), &observed(files, 5)).next;
    let state = take(&state, &Event::Downloaded { kind, torn: false }).next;
    let event = Event::LinesRead { kind, from: 10, to: 20, end: false };
    assert_eq!(
        step(&state, Orders::default(), &event, &POLICY),
        Err(IllegalEvent { state: "applying", event: "lines_read" })
    );
}

#[test]
fn only_a_completed_batch_ends_processed() {
    let error = Some(FileId::new("err"));
    for (how, closing) in [
        (Terminal::Completed, Closing::Processed),
        (Terminal::Expired, Closing::Failed),
        (Terminal::Cancelled, Closing::Cancelled),
    ] {
        let kind = ResultKind::Error;
        let mut state =
            take(&observing(), &observed(Observation { error: error.clone(), ..ended(how) }, 5)).next;
        for event in
            [Event::Downloaded { kind, torn: false }, Event::LinesRead { kind, from: 0, to: 0, end: true }]
        {
            state = take(&state, &event).next;
        }
        let step = take(&state, &Event::ChunkClosed { remaining: false, at: at(9) });
        assert_eq!(step.next, BatchState::Cleaning { closing });
        let step = take(&step.next, &Event::Cleaned { at: at(10) });
        assert_eq!((step.next, step.effects), (BatchState::Closed { closing }, vec![Effect::Retire]));
    }
}

#[test]
fn an_empty_batch_closes_and_sends_nothing() {
    let step = take(&BatchState::Filling, &Event::FillEnded { members: 0, at: at(1) });
    assert_eq!(step.next, BatchState::Closed { closing: Closing::Cancelled });
    assert_eq!(step.effects, [Effect::Retire]);
}

#[test]
fn a_clock_that_jumps_makes_no_wait_longer_and_none_negative() {
    let until = at(1_000_000);
    for jump in [-2 * 3600, -25 * 3600, -40 * 365 * 86_400] {
        assert_eq!(
            wait_for(until, at(1_000_000 + jump)),
            Policy::ASKED_WAIT_MAX.min(Duration::from_secs(3600))
        );
    }
    for jump in [0, 1, 25 * 3600, i64::from(i32::MAX)] {
        assert_eq!(wait_for(until, at(1_000_000 + jump)), Duration::ZERO);
    }
    assert_eq!(wait_for(until, at(999_970)), Duration::from_secs(30));
}

#[test]
fn a_clock_that_goes_back_while_a_batch_settles_or_is_missing_ends_nothing_early() {
    let early = Observation { completed_lines: Some(3), ..ended(Terminal::Completed) };
    let state = take(&observing(), &observed(early.clone(), 100_000)).next;
    assert!(matches!(take(&state, &observed(early, 92_800)).next, BatchState::Settling { .. }));
    let mut state = observing();
    for secs in [100_000, 92_800, 92_900, 93_000, 93_100, 93_200] {
        state = take(&state, &Event::NotKnown { at: at(secs) }).next;
    }
    assert!(matches!(state, BatchState::Observing { .. }));
}
