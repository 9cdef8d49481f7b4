//! Which requests may have the room that is kept back for when the disk is full: those that free
//! some, or only look. A server answers both kinds, so each request says it for itself.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::Method;

/// Answers a request with as much room as it may have.
pub(crate) async fn answer(request: Request<Body>, next: Next) -> Response {
    let _freeing = frees(request.method(), request.uri().path()).then(corten_engine::Freeing::new);
    next.run(request).await
}

fn frees(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD | Method::DELETE => true,
        Method::POST => {
            let last = path.rsplit('/').next().unwrap_or_default();
            // Also what may run a command that removes files.
            path.contains("/exec/")
                || matches!(
                    last,
                    "prune"
                        | "stop"
                        | "kill"
                        | "wait"
                        | "pause"
                        | "unpause"
                        | "exec"
                        | "attach"
                        | "resize"
                        | "check"
                        | "reset"
                )
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_takes_does_not_get_the_last_room() {
        for (method, path, expected) in [
            (Method::DELETE, "/v1.50/images/a", true),
            (Method::GET, "/containers/json", true),
            (Method::POST, "/images/prune", true),
            (Method::POST, "/containers/x/stop", true),
            (Method::POST, "/containers/x/exec", true),
            (Method::POST, "/exec/1/start", true),
            (Method::POST, "/corten/reset", true),
            (Method::POST, "/containers/x/start", false),
            (Method::POST, "/containers/create", false),
            (Method::POST, "/images/create", false),
            (Method::POST, "/images/a/tag", false),
            (Method::POST, "/build", false),
            (Method::PUT, "/containers/x/archive", false),
        ] {
            assert_eq!(frees(&method, path), expected, "{method} {path}");
        }
    }
}
