//! Runs a batch: each line is answered, booked in the ledger, and written to the output or error file.
//!
//! The input is read twice and never held: once to find where its lines begin, once line by line in a shuffled
//! order. A run that breaks off leaves nothing but its ledger lines; the next run gives the same and books only
//! what is not booked yet. The ledger is always ahead of the files, and the files of what a client can see.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use serde_json::{Value, json};

use super::answers::{self, Answer, Endpoint, Spoil};
use super::disk::{Disk, line_of};
use super::faults::{Faults, LineFault};
use super::world::{BatchRecord, Ending, Usage};
use super::{SimulatorError, dice};

/// Ledger lines are collected up to this size.
const LEDGER_CHUNK: usize = 64 * 1024;

/// What is to be run.
pub(super) struct Job<'a> {
    pub(super) batch: &'a BatchRecord,
    pub(super) endpoint: Endpoint,
    pub(super) seed: u64,
    pub(super) share: f64,
    pub(super) ending: Ending,
    /// Milliseconds since 1970.
    pub(super) at: i64,
    /// The ids that the output and the error file will have.
    pub(super) file_ids: [String; 2],
}

/// What a run gave. A file's size is none where the file has no line and so does not exist.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) completed: u64,
    pub(super) failed: u64,
    pub(super) usage: Usage,
    pub(super) bytes: [Option<u64>; 2],
}

/// Runs `job` to its end and puts its files in place.
pub(super) fn run(job: &Job<'_>, disk: &Disk, faults: &Faults) -> Result<Outcome, SimulatorError> {
    let id = job.batch.id.as_str();
    let ran = disk.already_ran(id)?;
    disk.set_interrupted(id, true);
    let input_path = disk.input_path(id);
    let failed = |source| SimulatorError::Disk { path: input_path.clone(), source };
    let mut input = BufReader::new(File::open(&input_path).map_err(failed)?);
    let mut places = line_places(&mut input).map_err(failed)?;
    dice::shuffle(&mut places, job.seed, &["order", id]);
    let files = [0, 1].map(|n| ResultFile { name: format!("{id}.result-{n}"), out: None, bytes: 0 });
    let sink = OnDisk { disk, files, ledger: Vec::new() };
    let mut run = Run { job, faults, ran, sink, outcome: Outcome::default() };
    let mut line = Vec::new();
    for (offset, len) in places {
        line.clear();
        input.seek(SeekFrom::Start(offset)).map_err(failed)?;
        (&mut input).take(len).read_to_end(&mut line).map_err(failed)?;
        run.line(&line)?;
    }
    run.outcome.bytes = run.sink.end(job)?;
    Ok(run.outcome)
}

/// What a run in memory gave besides: the bytes of the two files, and the lines of the ledger.
#[derive(Debug, Default)]
pub(super) struct InMemory {
    pub(super) files: [Vec<u8>; 2],
    pub(super) ledger: Vec<u8>,
}

impl Sink for InMemory {
    fn book(&mut self, line: &[u8]) -> Result<(), SimulatorError> {
        self.ledger.extend_from_slice(line);
        Ok(())
    }

    fn write(&mut self, file: usize, line: &[u8]) -> Result<(), SimulatorError> {
        if let Some(file) = self.files.get_mut(file) {
            file.extend_from_slice(line);
        }
        Ok(())
    }
}

/// The same without a disk.
pub(super) fn run_in_memory(
    job: &Job<'_>,
    input: &[u8],
    faults: &Faults,
) -> Result<(Outcome, InMemory), SimulatorError> {
    let mut lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
    dice::shuffle(&mut lines, job.seed, &["order", &job.batch.id]);
    let (ran, sink, outcome) = (HashSet::new(), InMemory::default(), Outcome::default());
    let mut run = Run { job, faults, ran, sink, outcome };
    for line in lines {
        run.line(line)?;
    }
    for (bytes, file) in run.outcome.bytes.iter_mut().zip(&run.sink.files) {
        *bytes = u64::try_from(file.len()).ok().filter(|bytes| *bytes > 0);
    }
    Ok((run.outcome, run.sink))
}

/// Where each line begins and how long it is.
fn line_places(input: &mut (impl BufRead + Seek)) -> io::Result<Vec<(u64, u64)>> {
    let (mut places, mut offset) = (Vec::new(), 0_u64);
    loop {
        let len = u64::try_from(input.skip_until(b'\n')?).unwrap_or(0);
        if len == 0 {
            return Ok(places);
        }
        places.push((offset, len));
        offset += len;
    }
}

struct ResultFile {
    name: String,
    out: Option<BufWriter<File>>,
    bytes: u64,
}

impl ResultFile {
    fn write(&mut self, disk: &Disk, line: &[u8]) -> Result<(), SimulatorError> {
        let path = disk.work_path(&self.name);
        let failed = |source| SimulatorError::Disk { path: path.clone(), source };
        let out = match &mut self.out {
            Some(out) => out,
            None => self.out.insert(BufWriter::new(File::create(&path).map_err(failed)?)),
        };
        self.bytes += u64::try_from(line.len()).unwrap_or(0);
        out.write_all(line).map_err(failed)
    }
}

/// Where the lines of a run go.
trait Sink {
    /// A line of the ledger.
    fn book(&mut self, line: &[u8]) -> Result<(), SimulatorError>;
    /// A line of a result file.
    fn write(&mut self, file: usize, line: &[u8]) -> Result<(), SimulatorError>;
}

struct OnDisk<'a> {
    disk: &'a Disk,
    files: [ResultFile; 2],
    ledger: Vec<u8>,
}

impl OnDisk<'_> {
    fn book_chunk(&mut self) -> Result<(), SimulatorError> {
        self.disk.book(&self.ledger)?;
        self.ledger.clear();
        Ok(())
    }

    fn end(mut self, job: &Job<'_>) -> Result<[Option<u64>; 2], SimulatorError> {
        self.book_chunk()?;
        let mut lengths = [None; 2];
        for (index, file) in self.files.into_iter().enumerate() {
            let path = self.disk.work_path(&file.name);
            let failed = |source| SimulatorError::Disk { path: path.clone(), source };
            let (Some(mut out), Some(id)) = (file.out, job.file_ids.get(index)) else { continue };
            out.flush().map_err(failed)?;
            drop(out);
            fs::rename(&path, self.disk.file_path(id)).map_err(failed)?;
            if let Some(bytes) = lengths.get_mut(index) {
                *bytes = Some(file.bytes);
            }
        }
        Ok(lengths)
    }
}

impl Sink for OnDisk<'_> {
    fn book(&mut self, line: &[u8]) -> Result<(), SimulatorError> {
        self.ledger.extend_from_slice(line);
        if self.ledger.len() >= LEDGER_CHUNK { self.book_chunk() } else { Ok(()) }
    }

    fn write(&mut self, file: usize, line: &[u8]) -> Result<(), SimulatorError> {
        match self.files.get_mut(file) {
            Some(file) => file.write(self.disk, line),
            None => Ok(()),
        }
    }
}

struct Run<'a, S> {
    job: &'a Job<'a>,
    faults: &'a Faults,
    ran: HashSet<String>,
    sink: S,
    outcome: Outcome,
}

/// What [`LineFault::Oversized`] puts into the body.
const OVERSIZED_BYTES: usize = 100_000_000;

/// Which result file.
const OUTPUT: usize = 0;
const ERROR: usize = 1;

impl<S: Sink> Run<'_, S> {
    fn line(&mut self, line: &[u8]) -> Result<(), SimulatorError> {
        // The input was validated, so that what cannot be read here does not occur.
        let Ok(request) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
        let Some(custom_id) = request["custom_id"].as_str() else { return Ok(()) };
        let job = self.job;
        let done = dice::fraction(job.seed, &["share", &job.batch.id, custom_id]) < job.share;
        if !done {
            let (code, message) = match job.ending {
                Ending::Cancelled => ("batch_cancelled", "The batch was cancelled before this request ran."),
                Ending::Expired | Ending::Completed => {
                    ("batch_expired", "The window of the batch ended before this request ran.")
                }
            };
            return self.unanswered(custom_id, code, message);
        }
        let fault = self.faults.on_line(job.batch.ordinal, custom_id);
        match fault {
            Some(LineFault::Missing {}) => return Ok(()),
            Some(LineFault::Error { code }) => {
                self.outcome.failed += 1;
                return self.unanswered(custom_id, code, "The request got no answer.");
            }
            Some(
                LineFault::Status { .. }
                | LineFault::Duplicate {}
                | LineFault::Corrupt {}
                | LineFault::Bom {}
                | LineFault::Length {}
                | LineFault::ContentFilter {}
                | LineFault::Refusal {}
                | LineFault::BodyText {}
                | LineFault::NotUtf8 {}
                | LineFault::Deep {}
                | LineFault::Oversized {}
                | LineFault::Blank {}
                | LineFault::Nonsense {}
                | LineFault::Stranger {},
            )
            | None => {}
        }
        let answer = self.answer(&request["body"], custom_id, fault);
        self.book(custom_id, &request["body"]["model"], &answer)?;
        self.answered(custom_id, answer, fault)
    }

    fn answer(&self, body: &Value, custom_id: &str, fault: Option<&LineFault>) -> Answer {
        let spoil = match fault {
            Some(LineFault::Status { status, code }) => {
                return answers::refusal(*status, code.as_deref(), "A fault that was planned.");
            }
            Some(LineFault::Length {}) => Spoil::Length,
            Some(LineFault::ContentFilter {}) => Spoil::ContentFilter,
            Some(LineFault::Refusal {}) => Spoil::Refusal,
            Some(LineFault::Nonsense {}) => Spoil::Nonsense,
            Some(
                LineFault::Error { .. }
                | LineFault::Missing {}
                | LineFault::Duplicate {}
                | LineFault::Corrupt {}
                | LineFault::Bom {}
                | LineFault::BodyText {}
                | LineFault::NotUtf8 {}
                | LineFault::Deep {}
                | LineFault::Oversized {}
                | LineFault::Blank {}
                | LineFault::Stranger {},
            )
            | None => Spoil::Not,
        };
        let key = format!("{}/{custom_id}", self.job.batch.id);
        answers::answer(self.job.endpoint, body, spoil, self.job.seed, &key, self.job.at / 1000)
    }

    /// Books that a line ran, once, whatever becomes of its answer.
    fn book(&mut self, custom_id: &str, model: &Value, answer: &Answer) -> Result<(), SimulatorError> {
        if self.ran.contains(custom_id) {
            return Ok(());
        }
        self.sink.book(&line_of(&json!({
            "event": "line_run",
            "batch": self.job.batch.id,
            "custom_id": custom_id,
            "model": model,
            "status_code": answer.status,
            "usage": {
                "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens,
                "total_tokens": answer.usage.input_tokens + answer.usage.output_tokens,
            },
            "at": self.job.at / 1000,
        })))
    }

    fn id_of(&self, kind: &str, custom_id: &str) -> String {
        dice::hex(self.job.seed, &[kind, &self.job.batch.id, custom_id], 24)
    }

    fn unanswered(&mut self, custom_id: &str, code: &str, message: &str) -> Result<(), SimulatorError> {
        let line = line_of(&json!({
            "id": format!("batch_req_{}", self.id_of("line", custom_id)),
            "custom_id": custom_id,
            "response": null,
            "error": {"code": code, "message": message},
        }));
        self.write(ERROR, &line)
    }

    fn answered(
        &mut self,
        custom_id: &str,
        answer: Answer,
        fault: Option<&LineFault>,
    ) -> Result<(), SimulatorError> {
        let body = match fault {
            Some(LineFault::BodyText {}) => Value::from(answer.body.to_string()),
            Some(LineFault::Oversized {}) => Value::from("x".repeat(OVERSIZED_BYTES)),
            Some(LineFault::Deep {}) => (0..200).fold(answer.body, |body, _| json!({ "in": body })),
            Some(_) | None => answer.body,
        };
        let line = |custom_id: &str, run: &Self| {
            line_of(&json!({
                "id": format!("batch_req_{}", run.id_of("line", custom_id)),
                "custom_id": custom_id,
                "response": {
                    "status_code": answer.status,
                    "request_id": run.id_of("request", custom_id),
                    "body": body,
                },
                "error": null,
            }))
        };
        let bytes = line(custom_id, self);
        // A status of 0 was seen among the successes, so that is where it is put.
        let file = if answer.status == 0 || answer.status < 300 { OUTPUT } else { ERROR };
        if (200..300).contains(&answer.status) {
            self.outcome.completed += 1;
            self.outcome.usage.add(answer.usage);
        } else {
            self.outcome.failed += 1;
        }
        match fault {
            Some(LineFault::Corrupt {}) => {
                let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
                self.write(file, &[half, b"\n"].concat())
            }
            Some(LineFault::Bom {}) => self.write(file, &["\u{feff}".as_bytes(), bytes.as_slice()].concat()),
            Some(LineFault::NotUtf8 {}) => {
                let at = bytes.len() / 2;
                let (before, behind) = bytes.split_at_checked(at).unwrap_or((&bytes, &[]));
                self.write(file, &[before, &[0xff], behind].concat())
            }
            Some(LineFault::Blank {}) => {
                let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                self.write(file, &[b"\r\n \r\n".as_slice(), line, b"\r\n"].concat())
            }
            Some(LineFault::Duplicate {}) => self.write(file, &[bytes.as_slice(), &bytes].concat()),
            Some(LineFault::Stranger {}) => {
                let stranger = line(&format!("stranger-{}", self.id_of("stranger", custom_id)), self);
                self.write(file, &[bytes, stranger].concat())
            }
            Some(
                LineFault::Status { .. }
                | LineFault::Error { .. }
                | LineFault::Missing {}
                | LineFault::Length {}
                | LineFault::ContentFilter {}
                | LineFault::Refusal {}
                | LineFault::BodyText {}
                | LineFault::Deep {}
                | LineFault::Oversized {}
                | LineFault::Nonsense {},
            )
            | None => self.write(file, &bytes),
        }
    }

    fn write(&mut self, file: usize, line: &[u8]) -> Result<(), SimulatorError> {
        self.sink.write(file, line)
    }
}
