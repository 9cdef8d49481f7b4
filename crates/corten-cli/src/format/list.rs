//! Lists: rows of named fields, printed as a table, as JSON, or through a template.

use serde_json::{Map, Value};

use crate::error::Result;
use crate::template::{Data, Template};

/// One thing in a list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    fields: Map<String, Value>,
    methods: Map<String, Value>,
}

impl Row {
    /// Adds a field.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Adds a field that takes a key (`.Label "key"`).
    #[must_use]
    pub(crate) fn method(
        mut self,
        name: &str,
        answers: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let answers: Map<String, Value> = answers
            .into_iter()
            .map(|(key, value)| (key, Value::String(value)))
            .collect();
        self.methods.insert(name.into(), Value::Object(answers));
        self
    }

    /// All its fields, as an object.
    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.fields)
    }

    pub(crate) fn data(self) -> Data {
        Data {
            root: Value::Object(self.fields),
            methods: self.methods,
            ..Data::default()
        }
    }
}

/// How a kind of thing is listed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listing<'a> {
    /// Fields and their headers in a table.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// The columns of the usual table, as a template.
    pub(crate) table: &'a str,
    /// What `--quiet` prints, as a template.
    pub(crate) quiet: &'a str,
}

impl Listing<'_> {
    /// Prints rows as `format` (or the configuration's default) says.
    pub(crate) fn render(
        &self,
        format: Option<&str>,
        quiet: bool,
        rows: Vec<Row>,
    ) -> Result<String> {
        let format = format
            .unwrap_or("table")
            .replace("\\t", "\t")
            .replace("\\n", "\n");
        let (is_table, text) = if quiet {
            (false, self.quiet)
        } else {
            match format.as_str() {
                "table" | "" => (true, self.table),
                "json" => (false, "{{json .}}"),
                custom => match custom.strip_prefix("table ") {
                    Some(columns) => (true, columns.trim()),
                    None => (false, custom),
                },
            }
        };
        let template = Template::parse(text)?;
        let mut out = String::new();
        if is_table {
            out.push_str(&self.header(&template, rows.first())?);
        }
        for row in rows {
            out.push_str(&template.render_row(row.data())?);
            out.push('\n');
        }
        if text == "{{json .}}" {
            out = escaped(&out);
        }
        Ok(if is_table { super::align(&out) } else { out })
    }

    /// The usual table, or what `--quiet` prints, of lines that its template would give: of
    /// hundreds of rows, applying it takes longer than everything else.
    pub(crate) fn lines(&self, quiet: bool, lines: &str) -> Result<String> {
        if quiet {
            return Ok(lines.to_owned());
        }
        let header = self.header(&Template::parse(self.table)?, None)?;
        Ok(super::align(&(header + lines)))
    }

    /// The line above a table. Fields with a key are headed by the key.
    fn header(&self, template: &Template, first: Option<&Row>) -> Result<String> {
        let headers = self.headers.iter();
        let headers: Map<String, Value> = headers
            .map(|(field, header)| ((*field).to_owned(), Value::from(*header)))
            .collect();
        let headers = Data {
            root: Value::Object(headers),
            methods: first.map(|row| row.methods.clone()).unwrap_or_default(),
            ..Data::default()
        };
        Ok(template.render_header(&headers)? + "\n")
    }
}

/// Rows as JSON: Docker escapes in them what would mean something in HTML; in its objects it
/// does not.
pub(crate) fn escaped(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: Listing<'static> = Listing {
        headers: &[("ID", "CONTAINER ID"), ("Names", "NAMES")],
        table: "{{.ID}}\t{{.Names}}",
        quiet: "{{.ID}}",
    };

    fn rows() -> Vec<Row> {
        vec![
            Row::default()
                .with("ID", "abc")
                .with("Names", "web")
                .method("Label", [("k".into(), "v".into())]),
            Row::default()
                .with("ID", "def")
                .with("Names", "db")
                .method("Label", []),
        ]
    }

    #[test]
    fn formats() {
        let show = |format: Option<&str>, quiet| LISTING.render(format, quiet, rows()).unwrap();
        insta::assert_snapshot!(show(None, false), @r#"
        CONTAINER ID   NAMES
        abc            web
        def            db
        "#);
        assert_eq!(show(None, true), "abc\ndef\n");
        assert_eq!(
            show(Some("{{.Names}}\\t{{.ID}}"), false),
            "web\tabc\ndb\tdef\n"
        );
        assert_eq!(
            show(Some("json"), false),
            "{\"ID\":\"abc\",\"Names\":\"web\"}\n{\"ID\":\"def\",\"Names\":\"db\"}\n"
        );
        assert_eq!(
            show(Some("table {{upper .Names}}\\t{{.Label \"k\"}}"), false),
            "NAMES     k\nWEB       v\nDB        \n"
        );
        assert!(LISTING.render(Some("{{.Nope}}"), false, rows()).is_err());
    }
}
