//! How a batch ended at the provider: its status, its files, its counts, and what was wrong with it.

use serde::{Deserialize, Serialize};

use super::id::{FileId, Timestamp};
use super::retry::{BatchFailure, BatchFault};

/// How a batch ended at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// Every line was tried.
    Completed,
    /// It was not admitted; where it has files all the same, it ran.
    Failed,
    /// The window closed first.
    Expired,
    /// It was cancelled.
    Cancelled,
}

impl Terminal {
    /// The provider's word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One entry of the provider's list of what is wrong with a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Problem {
    /// For instance `token_limit_exceeded`.
    pub code: Option<String>,
    /// The provider's words, cut.
    pub message: Option<String>,
    /// For instance `body.model`.
    pub param: Option<String>,
    /// The line of the input file, from 1.
    pub line: Option<u64>,
}

impl Problem {
    fn fault(&self) -> BatchFault<'_> {
        BatchFault {
            code: self.code.as_deref(),
            message: self.message.as_deref(),
            param: self.param.as_deref(),
            line: self.line,
        }
    }
}

/// What the provider said of the end of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub how: Terminal,
    /// When, by the provider's clock where it says, else by ours.
    pub at: Timestamp,
    /// The file of good lines.
    pub output: Option<FileId>,
    /// The file of the other lines.
    pub error: Option<FileId>,
    /// Lines that the provider counts as completed, where it ever said.
    pub completed_lines: Option<u64>,
    /// Lines that it counts as failed.
    pub failed_lines: Option<u64>,
    /// What is wrong with it, as much as is kept.
    pub problems: Vec<Problem>,
}

impl Ended {
    /// Bytes of problems that are kept: the state is one value of the store, which has a bound.
    pub const PROBLEM_BYTES_MAX: usize = 32 << 10;

    /// As many problems as are kept, with the provider's words cut.
    pub fn keep(problems: &[Problem]) -> Vec<Problem> {
        let mut left = Self::PROBLEM_BYTES_MAX;
        let cut = |text: &Option<String>, chars| text.as_ref().map(|text| text.chars().take(chars).collect());
        let mut kept = Vec::new();
        for problem in problems {
            let problem = Problem {
                code: cut(&problem.code, 60),
                message: cut(&problem.message, 200),
                param: cut(&problem.param, 60),
                line: problem.line,
            };
            let words = [&problem.code, &problem.message, &problem.param];
            let bytes: usize = words.into_iter().flatten().map(String::len).sum::<usize>() + 16;
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
            kept.push(problem);
        }
        kept
    }

    /// Whether the provider must have result files that it does not show yet.
    pub fn lacks_files(&self) -> bool {
        let may_have_good_lines = match self.how {
            // Some servers count nothing, and that an error file is there says nothing of the good lines.
            Terminal::Completed | Terminal::Expired | Terminal::Cancelled => self.completed_lines != Some(0),
            Terminal::Failed => self.completed_lines.is_some_and(|lines| lines > 0),
        };
        if self.output.is_none() && may_have_good_lines {
            return true;
        }
        let lines = match (self.completed_lines, self.failed_lines) {
            (None, None) => None,
            (completed, failed) => Some(completed.unwrap_or(0).saturating_add(failed.unwrap_or(0))),
        };
        let none = self.output.is_none() && self.error.is_none();
        none && match self.how {
            // A batch has lines, so one that was worked through has results.
            Terminal::Completed => true,
            // Cancelled or expired before anything ran, and says so.
            Terminal::Expired | Terminal::Cancelled => lines != Some(0),
            Terminal::Failed => lines.is_some_and(|lines| lines > 0),
        }
    }

    /// Whether lines that it completed, and that were paid for, are in no file that can be had.
    pub fn has_lost_lines(&self) -> bool {
        // One that was worked through and counts nothing may have completed whatever is in no file.
        let completed = self.completed_lines.map_or(self.how == Terminal::Completed, |lines| lines > 0);
        self.output.is_none() && completed
    }

    /// The result files that exist, in the order in which they are taken in.
    pub fn files(&self) -> impl Iterator<Item = (ResultKind, &FileId)> {
        let output = self.output.iter().map(|id| (ResultKind::Output, id));
        output.chain(self.error.iter().map(|id| (ResultKind::Error, id)))
    }

    /// Whether it ran nothing and cost nothing: it failed, left no file and counts no line.
    pub fn ran_nothing(&self) -> bool {
        let lines = self.completed_lines.unwrap_or(0).saturating_add(self.failed_lines.unwrap_or(0));
        self.how == Terminal::Failed && self.files().next().is_none() && lines == 0
    }

    /// What the provider's list of problems means for a batch that ran nothing.
    pub fn refusal(&self) -> BatchFailure {
        BatchFailure::from_faults(&self.problems.iter().map(Problem::fault).collect::<Vec<_>>())
    }

    /// The result file of one kind.
    pub const fn file(&self, kind: ResultKind) -> Option<&FileId> {
        match kind {
            ResultKind::Output => self.output.as_ref(),
            ResultKind::Error => self.error.as_ref(),
        }
    }
}

/// Which of the two result files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResultKind {
    /// The good lines, mostly.
    Output,
    /// The other lines.
    Error,
}

impl ResultKind {
    /// `output` or `error`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Error => "error",
        }
    }
}
