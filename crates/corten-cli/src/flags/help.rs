//! The flags' part of a help text, laid out as Docker's: two columns, wrapped.

use super::{Flag, Kind};

/// Renders the visible flags for a terminal `columns` wide.
#[must_use]
pub fn usage_of(tables: &[&'static [Flag]], columns: usize) -> String {
    let mut flags: Vec<&Flag> = tables
        .iter()
        .flat_map(|t| t.iter())
        .filter(|f| !f.hidden)
        .collect();
    flags.sort_by_key(|f| f.long);
    let heads: Vec<String> = flags.iter().map(|f| head(f)).collect();
    let left = heads.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut out = String::new();
    for (flag, head) in flags.iter().zip(&heads) {
        let mut text = flag.help.to_owned();
        if let Some(default) = shown_default(flag) {
            text.push_str(&format!(" (default {default})"));
        }
        out.push_str(&format!("{head:left$}"));
        let room = columns.saturating_sub(left).max(24);
        for (n, line) in wrap(&text, room).into_iter().enumerate() {
            if n > 0 {
                out.push_str(&" ".repeat(left));
            }
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

fn head(flag: &Flag) -> String {
    let mut head = match flag.short {
        Some(short) => format!("  -{short}, --{}", flag.long),
        None => format!("      --{}", flag.long),
    };
    if flag.kind != Kind::Switch {
        head.push(' ');
        head.push_str(flag.value);
    }
    head
}

fn shown_default(flag: &Flag) -> Option<String> {
    match flag.default {
        "" | "false" | "0" => None,
        text if flag.value == "string" => Some(format!("{text:?}")),
        text => Some(text.to_owned()),
    }
}

/// Breaks a text at spaces into lines of at most `room` characters where it can.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let needed = word.chars().count();
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + needed <= room {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lays_out_two_columns() {
        const FLAGS: &[Flag] = &[
            Flag::text("name", "Give the container a name").default("x"),
            Flag::switch(
                "detach",
                "Leave it running in the background and print its id, which is long",
            )
            .short('d'),
            Flag::switch("secret", "").hidden(),
        ];
        insta::assert_snapshot!(usage_of(&[FLAGS], 60), @r#"
          -d, --detach        Leave it running in the background and
                              print its id, which is long
              --name string   Give the container a name (default
                              "x")
        "#);
    }
}
