//! Bearer tokens, of the built-in endpoint and of another token server, and access rules.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use corten_registryd::{Action, Config, Rule, Server, TokenConfig};
use http::StatusCode;

use crate::harness::{Answer, Registry};

fn basic(text: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    format!("Basic {text}")
}

fn rule(repositories: &str, users: &str, actions: &[Action]) -> Rule {
    Rule {
        repositories: vec![repositories.to_owned()],
        users: vec![users.to_owned()],
        actions: actions.to_vec(),
    }
}

fn users(folder: &Path, lines: &[(&str, &str)]) -> PathBuf {
    let file = folder.join("htpasswd");
    let line = |(user, password): &(&str, &str)| {
        format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
    };
    std::fs::write(&file, lines.iter().map(line).collect::<String>()).unwrap();
    file
}

/// Ann owns `team/`, Bob may read it; everybody may read `public/`.
fn rules() -> Vec<Rule> {
    use Action::{Delete, Pull, Push};
    vec![
        rule("**", "ann", &[Pull]),
        rule("team/**", "ann", &[Push, Delete]),
        rule("public/**", "ann", &[Push]),
        rule("team/**", "bob", &[Pull]),
        rule("public/**", "anonymous", &[Pull]),
    ]
}

fn config(folder: &Path) -> Config {
    Config {
        root: folder.join("registry"),
        htpasswd: Some(users(folder, &[("ann", "one"), ("bob", "two")])),
        rules: rules(),
        ..Config::default()
    }
}

/// A token of the built-in endpoint; `user` is `name:password` or empty.
async fn ask(registry: &Registry, user: &str, query: &str) -> Answer {
    let path = format!("/token?service=corten-registry&{query}");
    let value = basic(user);
    let headers: &[(&str, &str)] = if user.is_empty() {
        &[]
    } else {
        &[("authorization", &value)]
    };
    registry.send("GET", &path, headers, "").await
}

async fn token(registry: &Registry, user: &str, scopes: &[&str]) -> String {
    let query: Vec<String> = scopes
        .iter()
        .map(|scope| format!("scope={scope}"))
        .collect();
    let answer = ask(registry, user, &query.join("&")).await;
    let json = answer.expect(StatusCode::OK).json();
    assert_eq!(json["token"], json["access_token"]);
    format!("Bearer {}", json["token"].as_str().unwrap())
}

/// What a request to a registry comes to, with this `Authorization`.
async fn status(registry: &Registry, method: &str, path: &str, value: &str) -> u16 {
    let headers = [("authorization", value)];
    let answer = registry.send(method, path, &headers, "").await;
    answer.status.as_u16()
}

#[tokio::test]
async fn rules_hold_for_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(config(folder.path())).await;
    let (ann, bob) = (basic("ann:one"), basic("bob:two"));
    let uploads = |repo: &str| format!("/v2/{repo}/blobs/uploads/");
    for (method, path, user, expected) in [
        ("POST", &*uploads("team/app"), &*ann, 202),
        ("POST", &uploads("team/app"), &bob, 403),
        ("POST", &uploads("other"), &ann, 403),
        ("GET", "/v2/team/app/tags/list", &bob, 404),
        ("GET", "/v2/other/tags/list", &bob, 403),
        ("GET", "/v2/other/tags/list", &ann, 404),
        ("DELETE", "/v2/team/app/manifests/x", &ann, 404),
        ("DELETE", "/v2/team/app/manifests/x", &bob, 403),
        ("DELETE", "/v2/public/app/manifests/x", &ann, 403),
    ] {
        let got = status(&registry, method, path, user).await;
        assert_eq!(got, expected, "{method} {path} {user}");
    }
    let denied = [("authorization", &*bob)];
    let denied = registry
        .send("GET", "/v2/other/tags/list", &denied, "")
        .await;
    denied.refused(StatusCode::FORBIDDEN, "DENIED");
    // Without a password: public things, but not the ping that tells clients to log in.
    let public = registry.get("/v2/public/app/tags/list").await;
    public.refused(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    for path in ["/v2/", "/v2/_catalog", "/v2/team/app/tags/list", "/nothing"] {
        let answer = registry.get(path).await;
        answer.refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    }
    let wrong = status(
        &registry,
        "GET",
        "/v2/public/app/tags/list",
        &basic("ann:x"),
    )
    .await;
    assert_eq!(
        wrong, 401,
        "a wrong password is told even where none is needed"
    );
}

#[tokio::test]
async fn a_mount_needs_the_right_to_read_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config
        .rules
        .push(rule("bobs/**", "bob", &[Action::Push, Action::Pull]));
    config.rules.push(rule("secret", "ann", &[Action::Push]));
    let registry = Registry::with(config).await;
    let digest = corten_oci::Digest::of(b"x");
    let (ann, bob) = (basic("ann:one"), basic("bob:two"));
    for repo in ["team/app", "secret"] {
        let push = format!("/v2/{repo}/blobs/uploads/?digest={digest}");
        let ann = [("authorization", &*ann)];
        let pushed = registry.send("POST", &push, &ann, "x").await;
        pushed.expect(StatusCode::CREATED);
    }
    for (from, expected) in [("team/app", 201), ("secret", 202)] {
        let path = format!("/v2/bobs/app/blobs/uploads/?mount={digest}&from={from}");
        assert_eq!(
            status(&registry, "POST", &path, &bob).await,
            expected,
            "{from}"
        );
    }
}

#[tokio::test]
async fn the_built_in_endpoint_gives_what_the_rules_allow() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(Config {
        token: Some(TokenConfig::default()),
        ..config(folder.path())
    })
    .await;
    let challenge = registry.get("/v2/team/app/tags/list").await;
    challenge.refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    let expected = format!(
        "Bearer realm=\"http://{}/token\",service=\"corten-registry\",scope=\"repository:team/app:pull\"",
        registry.address
    );
    assert_eq!(challenge.header("www-authenticate"), expected);

    for user in ["ann:two", "eve:one"] {
        let refused = ask(&registry, user, "scope=repository:team/app:pull").await;
        refused.refused(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    }
    let other = registry.get("/token?service=elsewhere").await;
    other.expect(StatusCode::BAD_REQUEST);

    // Two scopes in one token; what is not allowed is left out.
    let scopes = [
        "repository:team/app:pull,push",
        "repository:other:pull,push",
    ];
    let ann = token(&registry, "ann:one", &scopes).await;
    let bob = token(&registry, "bob:two", &scopes).await;
    let nobody = token(&registry, "", &["repository:public/app:pull,push"]).await;
    let uploads = |repo: &str| format!("/v2/{repo}/blobs/uploads/");
    for (method, path, user, expected) in [
        ("GET", "/v2/", &*ann, 200),
        ("POST", &*uploads("team/app"), &ann, 202),
        ("POST", &uploads("other"), &ann, 401),
        ("GET", "/v2/other/tags/list", &ann, 404),
        ("GET", "/v2/team/app/tags/list", &bob, 404),
        ("POST", &uploads("team/app"), &bob, 401),
        ("GET", "/v2/other/tags/list", &bob, 401),
        ("DELETE", "/v2/team/app/manifests/x", &ann, 401),
        ("GET", "/v2/public/app/tags/list", &nobody, 404),
        ("POST", &uploads("public/app"), &nobody, 401),
        ("GET", "/v2/", &format!("{ann}x"), 401),
        ("GET", "/v2/", "Bearer x.y.z", 401),
        // A password still does, for those who send it unasked.
        ("POST", &uploads("team/app"), &basic("ann:one"), 202),
    ] {
        let got = status(&registry, method, path, user).await;
        assert_eq!(got, expected, "{method} {path}");
    }
    let short = [("authorization", &*bob)];
    let short = registry
        .send("GET", "/v2/other/tags/list", &short, "")
        .await;
    let challenge = short.header("www-authenticate");
    assert!(
        challenge.ends_with(",error=\"insufficient_scope\""),
        "{challenge}"
    );
}

#[tokio::test]
async fn lists_show_what_may_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    let open = Config {
        root: root.clone(),
        ..Config::default()
    };
    let mut registry = Registry::with(open).await;
    for repo in ["team/app", "public/app", "other"] {
        registry.push_image(repo, "t", repo).await;
    }
    registry.stop().await;
    let registry = Registry::with(Config {
        token: Some(TokenConfig::default()),
        ..config(folder.path())
    })
    .await;
    let bob = token(&registry, "bob:two", &["registry:catalog:*"]).await;
    for value in [&*bob, &basic("bob:two")] {
        let headers = [("authorization", value)];
        let list = registry.send("GET", "/v2/_catalog", &headers, "").await;
        let names = list.expect(StatusCode::OK).json()["repositories"].clone();
        assert_eq!(names, serde_json::json!(["public/app", "team/app"]));
    }
    let without = token(&registry, "bob:two", &["repository:team/app:pull"]).await;
    assert_eq!(
        status(&registry, "GET", "/v2/_catalog", &without).await,
        401
    );
}

#[tokio::test]
async fn refresh_tokens_hold_until_the_password_changes() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::with(Config {
        token: Some(TokenConfig {
            lifetime: Some(Duration::from_secs(60)),
            ..TokenConfig::default()
        }),
        ..config(folder.path())
    })
    .await;
    let answer = ask(&registry, "ann:one", "offline_token=true").await;
    let json = answer.expect(StatusCode::OK).json();
    assert_eq!(json["expires_in"], 60);
    let refresh = json["refresh_token"].as_str().unwrap().to_owned();
    let without = ask(&registry, "", "offline_token=true").await.json();
    assert!(without["refresh_token"].is_null());

    let form = |refresh: &str| {
        format!(
            "grant_type=refresh_token&service=corten-registry&client_id=t&refresh_token={refresh}\
             &scope=repository:team/app:pull,push"
        )
    };
    let post = |form: String| async {
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        registry.send("POST", "/token", &kind, form).await
    };
    let answer = post(form(&refresh)).await;
    let access = answer.expect(StatusCode::OK).json()["access_token"].clone();
    let access = format!("Bearer {}", access.as_str().unwrap());
    assert_eq!(
        status(&registry, "POST", "/v2/team/app/blobs/uploads/", &access).await,
        202
    );
    // It is no access token, and an access token no refresh token.
    assert_eq!(
        status(&registry, "GET", "/v2/", &format!("Bearer {refresh}")).await,
        401
    );
    let misused = post(form(access.trim_start_matches("Bearer "))).await;
    misused.expect(StatusCode::UNAUTHORIZED);

    let password = "grant_type=password&username=ann&password=one&access_type=offline&client_id=t";
    let answer = post(password.to_owned()).await;
    assert!(answer.expect(StatusCode::OK).json()["refresh_token"].is_string());
    let wrong = post(password.replace("one", "two")).await;
    wrong.expect(StatusCode::UNAUTHORIZED);
    post("grant_type=other".to_owned())
        .await
        .expect(StatusCode::BAD_REQUEST);

    users(folder.path(), &[("ann", "changed"), ("bob", "two")]);
    post(form(&refresh)).await.expect(StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn tokens_of_another_server() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let config = |service: &str, issuer: &str| Config {
        root: folder.path().join("registry"),
        token: Some(TokenConfig {
            realm: Some("https://auth.test/token".to_owned()),
            service: service.to_owned(),
            issuer: issuer.to_owned(),
            keys: vec![fixtures.join("rsa-public.pem")],
            ..TokenConfig::default()
        }),
        ..Config::default()
    };
    // RS256, valid until 2100: Ann may pull and push "app" of "registry.test".
    let token = std::fs::read_to_string(fixtures.join("rs256-token.txt")).unwrap();
    let token = format!("Bearer {}", token.trim());
    for (service, issuer, expected) in [
        ("registry.test", "elsewhere", 202),
        ("registry.test", "", 202),
        ("registry.test", "somebody", 401),
        ("other.test", "elsewhere", 401),
    ] {
        let mut registry = Registry::with(config(service, issuer)).await;
        let got = status(&registry, "POST", "/v2/app/blobs/uploads/", &token).await;
        assert_eq!(got, expected, "{service} {issuer}");
        let elsewhere = status(&registry, "POST", "/v2/other/blobs/uploads/", &token).await;
        assert_eq!(elsewhere, 401);
        let challenge = registry.get("/v2/").await;
        let challenge = challenge.header("www-authenticate");
        let realm = format!("Bearer realm=\"https://auth.test/token\",service=\"{service}\"");
        assert_eq!(challenge, realm);
        registry
            .get("/token")
            .await
            .expect(StatusCode::UNAUTHORIZED);
        registry.stop().await;
    }
    let mut changed = token.clone();
    let middle = token.find('.').unwrap() + 20;
    changed.replace_range(middle..=middle, "!");
    let registry = Registry::with(config("registry.test", "")).await;
    assert_eq!(status(&registry, "GET", "/v2/", &changed).await, 401);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Config {
        root: folder.path().join("registry"),
        ..Config::default()
    };
    let token = |token: TokenConfig| Config {
        token: Some(token),
        ..plain.clone()
    };
    let realm = Some("https://auth.test/token".to_owned());
    for (config, word) in [
        (
            Config {
                rules: rules(),
                ..plain.clone()
            },
            "htpasswd",
        ),
        (token(TokenConfig::default()), "htpasswd"),
        (
            token(TokenConfig {
                realm,
                ..TokenConfig::default()
            }),
            "keys",
        ),
    ] {
        let error = Server::bind("127.0.0.1:0", config).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
