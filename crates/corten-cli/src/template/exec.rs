//! Applying a template to data.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::parse::{Node, Operand, Pipeline, What};
use super::shape::{Shape, Typed};
use super::{Data, TemplateError, funcs, line_of};

/// Values beyond this many bytes of output are refused: a template must not eat the machine.
const MAX_OUTPUT: usize = 256 << 20;

pub(super) fn render(
    nodes: &[Node],
    source: &str,
    data: Data,
    header: bool,
) -> Result<String, TemplateError> {
    let root = Typed::new(data.root, data.shape);
    let mut run = Run {
        source,
        methods: &data.methods,
        header,
        out: String::new(),
        variables: Vec::new(),
    };
    // `$` is what a template was given; few ask for it, and it is given for every row.
    if source.contains('$') {
        run.variables.push((String::new(), root.clone()));
    }
    run.nodes(nodes, &root)?;
    Ok(run.out)
}

/// A value, or the key that was not there.
enum Found {
    Value(Typed),
    Missing(String),
    /// A key that was not there, in a map whose keys are the user's.
    NoValue,
}

/// Objects that are maps in Go: a key they do not have is `<no value>`, not an error.
const MAPS: &[&str] = &[
    "Annotations",
    "Attributes",
    "Details",
    "DriverOpts",
    "Labels",
    "Networks",
    "Options",
    "Ports",
    "Sysctls",
    "Tmpfs",
    "Volumes",
];

impl Found {
    /// What a test or a function sees.
    fn or_null(self) -> Typed {
        match self {
            Self::Value(value) => value,
            Self::Missing(_) | Self::NoValue => Value::Null.into(),
        }
    }

    fn plain(value: Value) -> Self {
        Self::Value(value.into())
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Run<'a> {
    source: &'a str,
    methods: &'a Map<String, Value>,
    header: bool,
    out: String,
    variables: Vec<(String, Typed)>,
}

impl Run<'_> {
    fn error(&self, at: usize, what: String, reason: String) -> TemplateError {
        let (line, column) = line_of(self.source, at);
        TemplateError::Execute {
            line,
            column,
            what,
            reason,
        }
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Typed) -> Result<Flow, TemplateError> {
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn scoped(&mut self, nodes: &[Node], dot: &Typed) -> Result<Flow, TemplateError> {
        let depth = self.variables.len();
        let flow = self.nodes(nodes, dot)?;
        self.variables.truncate(depth);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Typed) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let found = self.pipeline(pipeline, dot)?;
                if pipeline.variables.is_empty() {
                    match found {
                        Found::Value(value) => self.out.push_str(&value.display()),
                        Found::NoValue => self.out.push_str("<no value>"),
                        Found::Missing(key) => {
                            let at = pipeline
                                .commands
                                .first()
                                .and_then(|c| c.first())
                                .map_or(0, |o| o.at);
                            return Err(self.error(
                                at,
                                self.text_of(pipeline),
                                format!("map has no entry for key {key:?}"),
                            ));
                        }
                    }
                }
                if self.out.len() > MAX_OUTPUT {
                    return Err(self.error(0, String::new(), "too much output".into()));
                }
            }
            Node::If(branches, otherwise) => {
                let depth = self.variables.len();
                for (condition, body) in branches {
                    if truth(&self.pipeline(condition, dot)?.or_null().value) {
                        let flow = self.scoped(body, dot)?;
                        self.variables.truncate(depth);
                        return Ok(flow);
                    }
                }
                let flow = self.scoped(otherwise, dot)?;
                self.variables.truncate(depth);
                return Ok(flow);
            }
            Node::With(branches, otherwise) => {
                let depth = self.variables.len();
                for (condition, body) in branches {
                    let value = self.pipeline(condition, dot)?.or_null();
                    if truth(&value.value) {
                        let flow = self.scoped(body, &value)?;
                        self.variables.truncate(depth);
                        return Ok(flow);
                    }
                }
                let flow = self.scoped(otherwise, dot)?;
                self.variables.truncate(depth);
                return Ok(flow);
            }
            Node::Range(pipeline, body, otherwise) => {
                return self.range(pipeline, body, otherwise, dot);
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Typed,
    ) -> Result<Flow, TemplateError> {
        let depth = self.variables.len();
        let plain = Pipeline {
            variables: Vec::new(),
            ..pipeline.clone()
        };
        let over = self.pipeline(&plain, dot)?.or_null();
        let element = over.shape.element();
        let pairs: Vec<(Value, Value)> = match over.value {
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(i, v)| (Value::from(i), v))
                .collect(),
            Value::Object(map) => map
                .into_iter()
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .map(|(k, v)| (Value::from(k), v))
                .collect(),
            Value::Null => Vec::new(),
            Value::Number(n) => (0..n.as_u64().unwrap_or(0).min(1 << 20))
                .map(|i| (Value::from(i), Value::from(i)))
                .collect(),
            other => {
                let at = pipeline.commands[0][0].at;
                return Err(self.error(
                    at,
                    self.text_of(pipeline),
                    format!("range can't iterate over {}", display(&other)),
                ));
            }
        };
        if pairs.is_empty() {
            return self.scoped(otherwise, dot);
        }
        for (key, value) in pairs {
            let value = Typed::new(value, element);
            match pipeline.variables.as_slice() {
                [] => {}
                [element] => self.variables.push((element.clone(), value.clone())),
                [index, element, ..] => {
                    self.variables.push((index.clone(), key.into()));
                    self.variables.push((element.clone(), value.clone()));
                }
            }
            let flow = self.nodes(body, &value)?;
            self.variables.truncate(depth);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Typed) -> Result<Found, TemplateError> {
        let mut last: Option<Found> = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, dot, last.map(Found::or_null))?);
        }
        let found = last.unwrap_or(Found::plain(Value::Null));
        if let Some(name) = pipeline.variables.first() {
            let value = found.or_null();
            if pipeline.assigns {
                match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
                    Some((_, slot)) => *slot = value.clone(),
                    None => {
                        let at = pipeline.commands[0][0].at;
                        return Err(self.error(
                            at,
                            format!("${name}"),
                            "undefined variable".into(),
                        ));
                    }
                }
            } else {
                self.variables.push((name.clone(), value.clone()));
            }
            return Ok(Found::Value(value));
        }
        Ok(found)
    }

    fn command(
        &mut self,
        command: &[Operand],
        dot: &Typed,
        piped: Option<Typed>,
    ) -> Result<Found, TemplateError> {
        let Some((head, rest)) = command.split_first() else {
            return Ok(Found::plain(Value::Null));
        };
        match &head.kind {
            What::Function(name) => self.call(name, head, rest, dot, piped).map(Found::Value),
            What::Field(path) if !rest.is_empty() || piped.is_some() => {
                self.method(head, path, rest, dot, piped)
            }
            _ if rest.is_empty() && piped.is_none() => self.operand(head, dot),
            _ => Err(self.error(
                head.at,
                self.operand_text(head),
                "can't give argument to non-function".into(),
            )),
        }
    }

    /// `.Label "key"`
    fn method(
        &mut self,
        head: &Operand,
        path: &[String],
        rest: &[Operand],
        dot: &Typed,
        piped: Option<Typed>,
    ) -> Result<Found, TemplateError> {
        let mut args = Vec::new();
        for operand in rest {
            args.push(self.operand(operand, dot)?.or_null());
        }
        args.extend(piped);
        let [name] = path else {
            let what = self.operand_text(head);
            return Err(self.error(head.at, what, "can't give argument to non-function".into()));
        };
        let Some(answers) = self.methods.get(name) else {
            let what = self.operand_text(head);
            let reason = format!("{name} is not a method but has arguments");
            return Err(self.error(head.at, what, reason));
        };
        let key = args
            .first()
            .map(|key| display(&key.value))
            .unwrap_or_default();
        if self.header {
            return Ok(Found::plain(Value::String(key)));
        }
        Ok(Found::plain(
            answers
                .get(&key)
                .cloned()
                .unwrap_or_else(|| Value::String(String::new())),
        ))
    }

    fn call(
        &mut self,
        name: &str,
        head: &Operand,
        rest: &[Operand],
        dot: &Typed,
        piped: Option<Typed>,
    ) -> Result<Typed, TemplateError> {
        // `and` and `or` do not evaluate what they need not.
        if matches!(name, "and" | "or") {
            let mut value = Typed::from(Value::Null);
            for operand in rest {
                value = self.operand(operand, dot)?.or_null();
                if truth(&value.value) == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(piped.unwrap_or(value));
        }
        let mut args = Vec::new();
        for operand in rest {
            args.push(self.operand(operand, dot)?.or_null());
        }
        args.extend(piped);
        if self.header && funcs::passes_headers_through(name) {
            return Ok(args.into_iter().next().unwrap_or(Value::Null.into()));
        }
        // What is looked up keeps its type; what is computed has none worth knowing.
        let shape = match args.split_first() {
            Some((from, keys)) if name == "index" => {
                keys.iter().fold(from.shape, |shape, _| shape.element())
            }
            _ => Shape::Any,
        };
        let args: Vec<Value> = args.into_iter().map(|arg| arg.value).collect();
        funcs::call(name, &args)
            .map(|value| Typed::new(value, shape))
            .map_err(|reason| {
                self.error(
                    head.at,
                    name.to_owned(),
                    format!("error calling {name}: {reason}"),
                )
            })
    }

    fn operand(&mut self, operand: &Operand, dot: &Typed) -> Result<Found, TemplateError> {
        match &operand.kind {
            What::Dot => Ok(Found::Value(dot.clone())),
            What::Constant(value) => Ok(Found::plain(value.clone())),
            What::Function(name) => self.call(name, operand, &[], dot, None).map(Found::Value),
            What::Field(path) => self.walk(operand, dot, path),
            What::Variable(name, path) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                match found.map(|(_, value)| value.clone()) {
                    Some(value) => self.walk(operand, &value, path),
                    None => {
                        Err(self.error(operand.at, format!("${name}"), "undefined variable".into()))
                    }
                }
            }
            What::Nested(pipeline, path) => {
                let value = self.pipeline(pipeline, dot)?;
                if path.is_empty() {
                    return Ok(value);
                }
                self.walk(operand, &value.or_null(), path)
            }
        }
    }

    fn walk(
        &self,
        operand: &Operand,
        from: &Typed,
        path: &[String],
    ) -> Result<Found, TemplateError> {
        let mut value = &from.value;
        let mut shape = from.shape;
        for (index, key) in path.iter().enumerate() {
            let named = index > 0 && MAPS.contains(&path[index - 1].as_str());
            let is_map = matches!(shape, Shape::Map(_)) || (shape == Shape::Any && named);
            let field = shape.field(key);
            let next = match value {
                Value::Object(map) => map
                    .get(key)
                    .or_else(|| field_named(map, key).filter(|_| !is_map)),
                Value::Null if index > 0 => {
                    return Err(self.error(
                        operand.at,
                        self.operand_text(operand),
                        format!("nil pointer evaluating interface {{}}.{key}"),
                    ));
                }
                Value::Null => return Ok(Found::Missing(key.clone())),
                other => {
                    let kind = match other {
                        Value::String(_) => "string",
                        Value::Bool(_) => "bool",
                        Value::Number(_) => "number",
                        _ => "[]interface {}",
                    };
                    return Err(self.error(
                        operand.at,
                        self.operand_text(operand),
                        format!("can't evaluate field {key} in type {kind}"),
                    ));
                }
            };
            let last = index + 1 == path.len();
            value = match (next, field) {
                (None, _) if is_map => return Ok(Found::NoValue),
                (Some(Value::Null), Some(field)) => field.zero(),
                (Some(next), _) => next,
                // Nothing is beyond a pointer that the document does not have.
                (None, Some(Shape::Pointer(_))) if !last => {
                    return Ok(Found::Missing(key.clone()));
                }
                (None, Some(field)) if field != Shape::Any => field.zero(),
                // What a key that is not there would contain is not there either.
                (None, _) => return Ok(Found::Missing(key.clone())),
            };
            shape = field.unwrap_or_default();
        }
        Ok(Found::Value(Typed {
            value: value.clone(),
            shape,
        }))
    }

    fn operand_text(&self, operand: &Operand) -> String {
        match &operand.kind {
            What::Dot => ".".into(),
            What::Field(path) => format!(".{}", path.join(".")),
            What::Variable(name, path) => path
                .iter()
                .fold(format!("${name}"), |text, field| format!("{text}.{field}")),
            What::Function(name) => name.clone(),
            What::Constant(value) => value.to_string(),
            What::Nested(pipeline, path) => path
                .iter()
                .fold(format!("({})", self.text_of(pipeline)), |t, f| {
                    format!("{t}.{f}")
                }),
        }
    }

    fn text_of(&self, pipeline: &Pipeline) -> String {
        let command = |command: &Vec<Operand>| {
            command
                .iter()
                .map(|o| self.operand_text(o))
                .collect::<Vec<_>>()
                .join(" ")
        };
        pipeline
            .commands
            .iter()
            .map(command)
            .collect::<Vec<_>>()
            .join(" | ")
    }
}

/// Go's names of fields and their JSON names may differ in case (`.ID` and `Id`,
/// `.APIVersion` and `ApiVersion`); templates use either.
fn field_named<'v>(map: &'v serde_json::Map<String, Value>, key: &str) -> Option<&'v Value> {
    let is_field = |name: &str| name.starts_with(|first: char| first.is_ascii_uppercase());
    if !is_field(key) {
        return None;
    }
    map.iter()
        .find(|(name, _)| is_field(name) && name.eq_ignore_ascii_case(key))
        .map(|(_, value)| value)
}

/// Go's idea of truth: everything that is not empty.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// A value as Go's `fmt` prints it.
#[must_use]
pub fn display(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(display).collect::<Vec<_>>().join(" ")
            )
        }
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            let pairs: Vec<String> = sorted
                .into_iter()
                .map(|(k, v)| format!("{k}:{}", display(v)))
                .collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}
