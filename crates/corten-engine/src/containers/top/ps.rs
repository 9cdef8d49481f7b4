//! What [`Columns`](super::columns::Columns) cannot carry out: this machine's own `ps`, whose
//! arguments `top`'s are, and the container's part of what it prints. As Docker does for all of them.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use super::Table;

/// Runs it, with the processes as its choice if it can take them, and picks them out if it cannot.
pub(super) fn run(arguments: &str, pids: &[i32]) -> Result<Table, String> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let chosen: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let chosen = format!("-q{}", chosen.join(","));
    let mut output = ps(words.iter().copied().chain([chosen.as_str()]))?;
    if !output.status.success() {
        // `f` and `-C` do not go with `-q`.
        output = ps(words.iter().copied())?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        let errors = text(&output.stderr);
        return Err(match errors.lines().next() {
            Some(line) if !line.is_empty() => format!("ps: {}", line.trim_start_matches("ps: ")),
            _ => format!("ps: {}", output.status),
        });
    }
    pick(&text(&output.stdout), pids)
}

fn ps<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<Output, String> {
    let mut command = Command::new("ps");
    // What it prints depends on much of the environment, and is to depend on the arguments.
    command.env_clear().args(arguments);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.output().map_err(|error| {
        format!("these arguments of ps need ps on this machine, which cannot be run: {error}")
    })
}

/// Another column called PID would be taken for the numbers of processes.
pub(super) fn renamed(arguments: &str) -> Result<(), String> {
    for word in arguments.split_whitespace() {
        let list = word.strip_prefix("-o");
        let columns = list.or_else(|| word.strip_prefix("--format="));
        let columns = columns.unwrap_or(word);
        if let Some((name, header)) = columns.split_once('=')
            && header.starts_with("PID")
            && name != "pid"
        {
            return Err(format!("specifying \"{name}={header}\" is not allowed"));
        }
    }
    Ok(())
}

/// The header, and the lines of these processes (with those of their threads, whose number is `-`).
fn pick(text: &str, pids: &[i32]) -> Result<Table, String> {
    let mut lines = text.lines();
    let fields =
        |line: &str| -> Vec<String> { line.split_ascii_whitespace().map(str::to_owned).collect() };
    let titles = fields(lines.next().unwrap_or_default());
    let at = titles.iter().position(|title| title == "PID");
    let at = at.ok_or("Couldn't find PID field in ps output")?;
    let pids: BTreeSet<i32> = pids.iter().copied().collect();
    let (mut rows, mut taken) = (Vec::new(), false);
    for line in lines {
        let mut row = fields(line);
        let Some(pid) = row.get(at) else { continue };
        if pid != "-" {
            let number = pid.parse::<i32>();
            let number = number.map_err(|error| format!("Unexpected pid '{pid}': {error}"))?;
            taken = pids.contains(&number);
        }
        if taken {
            // The last column has words of its own.
            if let Some(last) = titles.len().checked_sub(1).filter(|last| row.len() > *last) {
                let rest = row.split_off(last).join(" ");
                row.push(rest);
            }
            rows.push(row);
        }
    }
    Ok(Table { titles, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_processes_are_picked() {
        let text = "  PID  LWP CMD\n 10 - sh\n  -  10 -\n 7  - \\_ sleep 5\n 3 - init\n";
        let table = pick(text, &[10, 7]).unwrap();
        assert_eq!(table.titles, ["PID", "LWP", "CMD"]);
        assert_eq!(
            table.rows,
            [
                vec!["10", "-", "sh"],
                vec!["-", "10", "-"],
                vec!["7", "-", "\\_ sleep 5"]
            ]
        );
        assert!(
            pick("COMMAND\nsh\n", &[1])
                .unwrap_err()
                .contains("PID field")
        );
        assert!(pick("PID\nx\n", &[1]).unwrap_err().contains("'x'"));
        assert!(pick("", &[1]).is_err());
        assert_eq!(pick("PID CMD\n", &[1]).unwrap().rows.len(), 0);
    }

    #[test]
    fn nothing_else_may_be_called_pid() {
        for (arguments, fits) in [
            ("-o pid=PID", true),
            ("-o ppid=PID", false),
            ("-oppid=PIDS", false),
            ("-o pid,ppid=PID", false),
            ("-o pid,comm=NAME", true),
            ("--format uid=PID", false),
            ("--format=uid=PID", false),
            ("--format=pid=PID", true),
        ] {
            assert_eq!(renamed(arguments).is_ok(), fits, "{arguments}");
        }
    }
}
