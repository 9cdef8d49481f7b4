//! Modes as `--chmod` gives them: octal, or symbolic as chmod(1) has them (`u=rwX,go-w`).
//!
//! The corners are BSD's, which BuildKit has: what stands before the operator is all but the
//! sticky bit where nothing does, whatever the umask is; `X` looks at the mode as it was.

use std::fmt;

/// Set-user-id, set-group-id and all permissions: what `a` and nobody stand for.
const ALL: u32 = 0o6777;
const STICKY: u32 = 0o1000;

/// What becomes of a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange {
    written: String,
    steps: Vec<Step>,
    octal: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Set(u32),
    Clear(u32),
    /// `X`: set where anybody may execute it already, or it is a directory.
    Execute(u32),
    /// `g=u`: from the class that begins at a bit, to these bits.
    Copy {
        shift: u32,
        to: u32,
        operator: char,
    },
}

/// Why a text is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// It begins with a digit.
    #[error("invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777")]
    Octal(String),
    /// It is not what chmod(1) takes.
    #[error("invalid chmod parameter: '{0}'. it should be octal, or symbolic as in u=rwX,go-w")]
    Symbolic(String),
}

impl ModeChange {
    /// Reads a mode.
    ///
    /// # Errors
    /// See [`ModeError`].
    pub fn parse(text: &str) -> Result<Self, ModeError> {
        let change = |steps, octal| Self {
            written: text.to_owned(),
            steps,
            octal,
        };
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return match u32::from_str_radix(text, 8) {
                Ok(mode) if mode <= 0o7777 => Ok(change(Vec::new(), Some(mode))),
                _ => Err(ModeError::Octal(text.to_owned())),
            };
        }
        let mut steps = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut steps).ok_or_else(|| ModeError::Symbolic(text.to_owned()))?;
        }
        Ok(change(steps, None))
    }

    /// The mode, where it does not depend on what was there.
    #[must_use]
    pub fn octal(&self) -> Option<u32> {
        self.octal
    }

    /// The mode of a file that had another.
    #[must_use]
    pub fn apply(&self, old: u32, is_directory: bool) -> u32 {
        if let Some(mode) = self.octal {
            return mode;
        }
        let mut mode = old & 0o7777;
        for step in &self.steps {
            match *step {
                Step::Set(bits) => mode |= bits,
                Step::Clear(bits) => mode &= !bits,
                Step::Execute(bits) if old & 0o111 != 0 || is_directory => mode |= bits,
                Step::Execute(_) => {}
                Step::Copy {
                    shift,
                    to,
                    operator,
                } => {
                    let one = mode >> shift & 0o7;
                    let everywhere = (one << 6 | one << 3 | one) & to;
                    match operator {
                        '+' => mode |= everywhere,
                        '-' => mode &= !everywhere,
                        _ => mode = mode & !to | everywhere,
                    }
                }
            }
        }
        mode
    }
}

impl fmt::Display for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.octal {
            Some(mode) => write!(f, "{mode:o}"),
            None => f.write_str(&self.written),
        }
    }
}

/// `ug+rw-x`; `None`: it is malformed.
fn parse_clause(clause: &str, steps: &mut Vec<Step>) -> Option<()> {
    let operators = clause.find(|c| !matches!(c, 'a' | 'u' | 'g' | 'o'))?;
    let (classes, mut rest) = clause.split_at(operators);
    let mut who = classes.chars().fold(0, |who, class| {
        who | match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o0007,
            _ => ALL,
        }
    });
    while !rest.is_empty() {
        let operator = rest
            .chars()
            .next()
            .filter(|c| matches!(c, '+' | '-' | '='))?;
        let end = rest[1..]
            .find(['+', '-', '='])
            .map_or(rest.len(), |at| at + 1);
        parse_permissions(operator, &rest[1..end], &mut who, steps)?;
        rest = &rest[end..];
    }
    Some(())
}

fn parse_permissions(
    operator: char,
    permissions: &str,
    who: &mut u32,
    steps: &mut Vec<Step>,
) -> Option<()> {
    *who &= !STICKY;
    let (mut bits, mut execute) = (0, 0);
    let mut assigned = false;
    let others_alone = |who: u32| who != 0 && who & !0o7 == 0;
    for permission in permissions.chars() {
        match permission {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            'X' if operator == '-' => bits |= 0o111,
            'X' => execute = 0o111,
            's' if !others_alone(*who) => bits |= 0o6000,
            't' if !others_alone(*who) => {
                *who |= STICKY;
                bits |= STICKY;
            }
            's' | 't' => {}
            'u' | 'g' | 'o' => {
                // What was read so far comes first.
                flush(operator, *who, &mut bits, &mut execute, steps);
                assigned = true;
                let shift = match permission {
                    'u' => 6,
                    'g' => 3,
                    _ => 0,
                };
                let to = if *who == 0 { 0o777 } else { *who & 0o777 };
                steps.push(Step::Copy {
                    shift,
                    to,
                    operator,
                });
            }
            _ => return None,
        }
    }
    if operator == '=' && bits == 0 && !assigned {
        steps.push(Step::Clear(of(*who, ALL)));
    }
    flush(operator, *who, &mut bits, &mut execute, steps);
    Some(())
}

/// What classes stand for; nobody is everybody.
fn of(who: u32, all: u32) -> u32 {
    if who == 0 { all } else { who }
}

fn flush(operator: char, who: u32, bits: &mut u32, execute: &mut u32, steps: &mut Vec<Step>) {
    let chosen = std::mem::take(bits);
    if chosen != 0 {
        if operator == '=' {
            steps.push(Step::Clear(of(who, ALL)));
        }
        let bits = chosen & of(who, 0o7777);
        steps.push(match operator {
            '-' => Step::Clear(bits),
            _ => Step::Set(bits),
        });
    }
    let chosen = std::mem::take(execute);
    if chosen != 0 {
        steps.push(Step::Execute(chosen & of(who, 0o7777)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_chmod_does() {
        for (text, old, directory, expected) in [
            ("755", 0o600, false, 0o755),
            ("04711", 0o600, false, 0o4711),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("go-rwx", 0o4777, false, 0o4700),
            ("a=r", 0o4755, false, 0o444),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("g=u", 0o740, false, 0o770),
            ("g=u-w", 0o740, false, 0o750),
            ("o+g", 0o750, false, 0o755),
            ("ug+rw-x", 0o711, false, 0o661),
            ("go=", 0o777, false, 0o700),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("o+s", 0o755, false, 0o755),
            ("+t", 0o755, true, 0o1755),
            ("=rw", 0o777, false, 0o666),
            ("a+X", 0o644, false, 0o644),
            ("a-X", 0o755, false, 0o644),
        ] {
            let change = ModeChange::parse(text).unwrap();
            let mode = change.apply(old, directory);
            assert_eq!(mode, expected, "{text} of {old:o} is {mode:o}");
        }
    }

    #[test]
    fn what_is_no_mode_is_refused() {
        for text in [
            "", "u", "u+y", "x+r", "u+x,", ",u+x", "u+x,,g+x", "rwx", "+x u", "-é",
        ] {
            let error = ModeChange::parse(text).unwrap_err();
            assert_eq!(error, ModeError::Symbolic(text.to_owned()));
        }
        for text in ["8", "999", "10000", "77777", "7x"] {
            let error = ModeChange::parse(text).unwrap_err();
            assert_eq!(error, ModeError::Octal(text.to_owned()));
        }
    }
}
