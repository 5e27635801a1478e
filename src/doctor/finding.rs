//! The findings of the checks, and their report.

use crate::report::text::plain_plural;
use serde::Serialize;
use serde_json::json;
use std::fmt::Write as _;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing is wrong.
    Ok,
    /// Nothing is wrong, and time alone is missing.
    Waiting,
    /// It works, and worse than it could.
    Warning,
    /// It does not work.
    Error,
    /// A fact is missing.
    NotChecked,
}

impl Status {
    const ALL: [Self; 5] = [Self::Ok, Self::Waiting, Self::Warning, Self::Error, Self::NotChecked];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Waiting => "waiting",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::NotChecked => "not checked",
        }
    }
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The name of the check, which does not change between releases.
    pub check: &'static str,
    /// The result.
    pub status: Status,
    /// The observation.
    pub message: String,
    /// The action that ends a warning or an error.
    pub remedy: Option<String>,
}

impl Finding {
    /// Nothing is wrong.
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, message: message.into(), remedy: None }
    }

    /// A state that ends by itself; the message says when.
    pub fn waiting(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Waiting, message: message.into(), remedy: None }
    }

    /// A warning with its remedy.
    pub fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, status: Status::Warning, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// An error with its remedy.
    pub fn error(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, status: Status::Error, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// A check without the fact that it needs.
    pub fn not_checked(check: &'static str, reason: impl Into<String>) -> Self {
        Self { check, status: Status::NotChecked, message: reason.into(), remedy: None }
    }
}

/// The findings of all checks.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The findings, in the order of the data's way.
    pub findings: Vec<Finding>,
}

impl Report {
    /// True if there are neither warnings nor errors.
    pub fn is_well(&self) -> bool {
        self.count(Status::Warning) + self.count(Status::Error) == 0
    }

    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    /// A line for each finding, and the sums.
    pub fn to_text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
        let mut text = String::new();
        for Finding { check, status, message, remedy } in &self.findings {
            let remedy = remedy.as_ref().map_or_else(String::new, |remedy| format!("; remedy: {remedy}"));
            let _ = writeln!(text, "{:<11}  {check:<width$}  {message}{remedy}", status.as_str());
        }
        let counted = |status: &Status| match (self.count(*status), status) {
            (n, Status::Warning | Status::Error) => plain_plural(n, status.as_str()),
            (n, _) => format!("{n} {}", status.as_str()),
        };
        let counts: Vec<String> = Status::ALL.iter().map(counted).collect();
        let _ = writeln!(text, "\n{}: {}", plain_plural(self.findings.len(), "check"), counts.join(", "));
        text
    }

    /// The same as JSON.
    pub fn to_json(&self) -> String {
        let counts: serde_json::Map<_, _> = Status::ALL
            .iter()
            .map(|status| (status.as_str().replace(' ', "_"), json!(self.count(*status))))
            .collect();
        format!("{:#}\n", json!({"findings": self.findings, "counts": counts}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_line_for_each_finding_and_their_sums() {
        let report = Report {
            findings: vec![
                Finding::ok("clock", "equal"),
                Finding::waiting("history", "a day of it at noon"),
                Finding::error("rules", "none is loaded", "load them"),
                Finding::not_checked("sender", "no answer"),
            ],
        };
        let text = "\
ok           clock    equal
waiting      history  a day of it at noon
error        rules    none is loaded; remedy: load them
not checked  sender   no answer

4 checks: 1 ok, 1 waiting, 0 warnings, 1 error, 1 not checked
";
        assert_eq!(report.to_text(), text);
        let parsed: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(
            parsed["counts"],
            json!({"ok": 1, "waiting": 1, "warning": 0, "error": 1, "not_checked": 1})
        );
        assert_eq!(
            parsed["findings"][2],
            json!({"check": "rules", "status": "error", "message": "none is loaded", "remedy": "load them"})
        );
        assert!(!report.is_well());
        let undone = [Finding::not_checked("sender", "no answer"), Finding::waiting("history", "until noon")];
        assert!(Report { findings: undone.into() }.is_well());
    }
}
