//! `build --call`: questions about the Dockerfile instead of a build, and how the answers are
//! printed (as buildx does).

use crate::app::Cli;
use crate::error::{CliError, Result};
use crate::flags::Parsed;
use crate::progress::stream::Answer;

/// The value of `--call`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inquiry {
    pub(super) name: String,
    json: bool,
    /// Exit with 0 whatever was found.
    ignore_status: bool,
}

impl Inquiry {
    /// What is asked; `None`: it is to be built.
    pub(super) fn of(flags: &Parsed) -> Result<Option<Self>> {
        if flags.on("check") {
            return Self::parse("check");
        }
        Self::parse(flags.nonempty("call").unwrap_or("build"))
    }

    fn parse(text: &str) -> Result<Option<Self>> {
        let mut inquiry = Self {
            name: String::new(),
            json: false,
            ignore_status: false,
        };
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("format", "json")) => inquiry.json = true,
                Some(("format", "" | "text")) => inquiry.json = false,
                Some(("ignorestatus", value)) => {
                    inquiry.ignore_status = match value {
                        "1" | "t" | "true" => true,
                        "0" | "f" | "false" => false,
                        _ => {
                            return Err(CliError::message(format!(
                                "invalid ignorestatus print value: {value}"
                            )));
                        }
                    };
                }
                Some(_) => {
                    return Err(CliError::message(format!("invalid print field: {field}")));
                }
                None if inquiry.name.is_empty() => field.clone_into(&mut inquiry.name),
                None => return Err(CliError::message(format!("invalid print value: {text}"))),
            }
        }
        match inquiry.name.as_str() {
            "build" => Ok(None),
            "check" | "lint" | "outline" | "targets" => Ok(Some(inquiry)),
            other => Err(CliError::message(format!(
                "unknown method {other:?} for --call: there are build, check, outline and targets"
            ))),
        }
    }

    /// Prints the answer; rules that are not kept end the command with 1.
    pub(super) fn print(&self, cli: &Cli, answer: &Answer) -> Result {
        let check = matches!(self.name.as_str(), "check" | "lint");
        if self.json {
            let text = serde_json::to_string_pretty(&answer.json);
            cli.line(text.map_err(crate::client::ClientError::from)?)?;
        } else if check {
            cli.print(&Self::checked(answer))?;
        } else {
            cli.print(&answer.text)?;
        }
        if let Some(error) = &answer.error {
            return Err(CliError::message(format!("ERROR: {}", error.trim_end())));
        }
        if answer.warnings > 0 && !self.ignore_status {
            return Err(CliError::status(1));
        }
        Ok(())
    }

    fn checked(answer: &Answer) -> String {
        let found = match answer.warnings {
            0 if answer.error.is_some() => return String::new(),
            0 => return "Check complete, no warnings found.\n".to_owned(),
            1 => "1 warning has been found!".to_owned(),
            count => format!("{count} warnings have been found!"),
        };
        let end = if answer.error.is_some() { "\n" } else { "" };
        format!("Check complete, {found}\n{}{end}", answer.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods() {
        assert_eq!(Inquiry::parse("build").unwrap(), None);
        let check = Inquiry::parse("check,format=json,ignorestatus=true").unwrap();
        let check = check.unwrap();
        assert!(check.json && check.ignore_status && check.name == "check");
        for (text, message) in [
            ("check,outline", "invalid print value: check,outline"),
            ("check,form=json", "invalid print field: form=json"),
            (
                "chek",
                "unknown method \"chek\" for --call: there are build, check, outline and targets",
            ),
        ] {
            assert_eq!(Inquiry::parse(text).unwrap_err().to_string(), message);
        }
    }
}
