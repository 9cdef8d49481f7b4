use serde_json::json;

use super::*;

fn render(template: &str) -> String {
    let data = Data {
        root: json!({
            "Name": "web", "N": 3, "F": 1.5, "Yes": true, "No": false, "Empty": "", "Nil": null,
            "List": ["a", "b", "c"], "Map": {"b": 2, "a": 1}, "Ports": {"80/tcp": [{"HostPort": "8080"}]},
            "Labels": {"a": "1"}, "State": {"Running": true, "Health": null},
            "Quote": "a \"<b>\"",
        }),
        methods: json!({"Label": {"k": "v"}}).as_object().unwrap().clone(),
        ..Data::default()
    };
    match Template::parse(template).and_then(|t| t.render(&data)) {
        Ok(text) => text,
        Err(error) => format!("! {error}"),
    }
}

#[test]
fn templates() {
    for (template, expected) in [
        ("plain", "plain"),
        ("{{.Name}}", "web"),
        ("{{ .Name }}-{{.N}}", "web-3"),
        ("a {{- .Name -}} b", "awebb"),
        ("a {{-  /* note */ -}} b", "ab"),
        ("{{/* c */}}x", "x"),
        ("{{.State.Running}}", "true"),
        (
            "{{.Labels.a}} {{.Labels.b}} {{if .Labels.b}}x{{end}}",
            "1 <no value> ",
        ),
        ("{{.NAME}} {{.State.RUNNING}}", "web true"),
        ("{{json .Map}}", "{\"b\":2,\"a\":1}"),
        ("{{.Map}}", "map[a:1 b:2]"),
        ("{{.List}}", "[a b c]"),
        ("{{json .Quote}}", "\"a \\\"<b>\\\"\""),
        ("{{index .List 1}}", "b"),
        ("{{index .Map \"b\"}}", "2"),
        ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
        ("{{len .List}} {{len .Name}} {{len .Map}}", "3 3 2"),
        ("{{range .List}}{{.}};{{end}}", "a;b;c;"),
        (
            "{{range $i, $e := .List}}{{$i}}={{$e}} {{end}}",
            "0=a 1=b 2=c ",
        ),
        ("{{range $k, $v := .Map}}{{$k}}{{$v}}{{end}}", "a1b2"),
        ("{{range .Nil}}x{{else}}none{{end}}", "none"),
        (
            "{{range .List}}{{if eq . \"b\"}}{{continue}}{{end}}{{.}}{{end}}",
            "ac",
        ),
        (
            "{{range .List}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}",
            "a",
        ),
        (
            "{{if .Yes}}y{{else}}n{{end}}{{if .Empty}}y{{else if .No}}m{{else}}n{{end}}",
            "yn",
        ),
        ("{{if .State.Health}}h{{else}}none{{end}}", "none"),
        ("{{if .State.Missing}}h{{else}}none{{end}}", "none"),
        (
            "{{with .State}}{{.Running}}{{end}}{{with .Nil}}x{{else}}e{{end}}",
            "truee",
        ),
        ("{{$x := .Name}}{{$x}}{{$x = \"y\"}}{{$x}}", "weby"),
        ("{{$.Name}}{{range .List}}{{$.N}}{{end}}", "web333"),
        ("{{.Name | upper | printf \"%s!\"}}", "WEB!"),
        (
            "{{upper .Name}} {{title .Name}} {{lower \"ABC\"}}",
            "WEB Web abc",
        ),
        (
            "{{join .List \", \"}} {{index (split \"a:b\" \":\") 1}}",
            "a, b, c b",
        ),
        (
            "{{truncate .Name 2}}|{{pad .Name 1 2}}|{{pad \"\" 1 2}}",
            "we| web  |",
        ),
        (
            "{{printf \"%-5s|%5d|%05d|%q|%.2f|%v|%t|%x\" .Name .N .N .Name .F .List .Yes 255}}",
            "web  |    3|00003|\"web\"|1.50|[a b c]|true|ff",
        ),
        ("{{println .Name .N}}", "web 3\n"),
        ("{{print \"a\" 1 2 \"b\"}}", "a1 2b"),
        (
            "{{eq .N 3}}{{eq .N 1 2 3}}{{ne .Name \"x\"}}{{lt 1 2}}{{ge 2 2}}{{gt 1.5 1}}{{le \"a\" \"b\"}}",
            "truetruetruetruetruetruetrue",
        ),
        (
            "{{and .Yes .Name}} {{or .Empty \"d\"}} {{not .Yes}}",
            "web d false",
        ),
        ("{{and .No .Nope.Deep}}", "false"),
        ("{{`raw \\n`}} {{\"esc\\t\\u00e9\"}}", "raw \\n esc\té"),
        ("{{slice .Name 1 3}}", "eb"),
        ("{{html .Quote}}", "a &#34;&lt;b&gt;&#34;"),
        ("{{.Label \"k\"}}[{{.Label \"none\"}}]", "v[]"),
        ("{{.Nil}}", "<nil>"),
        ("{{true}} {{1}} {{-1}} {{0x10}}", "true 1 -1 16"),
    ] {
        assert_eq!(render(template), expected, "{template}");
    }
}

#[test]
fn errors() {
    for (template, expected) in [
        (
            "{{.Name",
            "! template parsing error: template: :1: unclosed action",
        ),
        (
            "x\n{{if .Name}}",
            "! template parsing error: template: :2: unexpected EOF",
        ),
        (
            "{{end}}",
            "! template parsing error: template: :1: unexpected {{end}}",
        ),
        (
            "{{nope .Name}}",
            "! template parsing error: template: :1: function \"nope\" not defined",
        ),
        (
            "{{}}",
            "! template parsing error: template: :1: missing value for command",
        ),
        (
            "{{\"x}}",
            "! template parsing error: template: :1: unterminated quoted string",
        ),
        (
            "{{template \"x\"}}",
            "! template parsing error: template: :1: {{template}} is not offered",
        ),
        (
            "{{.Foo}}",
            "! template parsing error: template: :1:2: executing \"\" at <.Foo>: map has no entry for key \"Foo\"",
        ),
        (
            "{{.Name.Foo}}",
            "! template parsing error: template: :1:2: executing \"\" at <.Name.Foo>: can't evaluate field Foo in type string",
        ),
        (
            "{{index .List 9}}",
            "! template parsing error: template: :1:2: executing \"\" at <index>: error calling index: reflect: slice index out of range: 9",
        ),
        (
            "{{$x}}",
            "! template parsing error: template: :1:2: executing \"\" at <$x>: undefined variable",
        ),
        (
            "{{json.}}",
            "! template parsing error: template: :1: unexpected <.> in operand",
        ),
        (
            "{{break}}",
            "! template parsing error: template: :1: {{break}} outside {{range}}",
        ),
    ] {
        assert_eq!(render(template), expected, "{template}");
    }
}

#[test]
fn headers_pass_through_functions() {
    let headers = Data::from(json!({"ID": "CONTAINER ID", "Names": "NAMES"}));
    let t = Template::parse("{{truncate .ID 4}}\t{{upper .Names}}").unwrap();
    assert_eq!(t.render_header(&headers).unwrap(), "CONTAINER ID\tNAMES");
}

proptest::proptest! {
    #[test]
    fn never_panics(text in "(\\{\\{|\\}\\}|[-a-z.$|(\"` )]|if|end|range|else|index|printf){0,14}") {
        drop(Template::parse(&text).and_then(|t| t.render(&Data::from(json!({"a": [1, {"b": "c"}]})))));
    }
}
