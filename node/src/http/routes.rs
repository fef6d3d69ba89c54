//! Routes that can be listed: axum's router does not say what it answers to, and the test that
//! holds every route against every role must not miss one.
//!
//! Invariant: a route is added and listed by one call, so that the list is the router's own.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{self, MethodRouter};

use crate::state::App;

/// A method and a path, as the router has it: `/api/v1/users/{user}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub method: &'static str,
    pub path: String,
}

/// Axum's router, with the list of its routes.
#[derive(Debug, Default)]
pub struct Routes {
    router: Router<App>,
    list: Vec<Listed>,
}

/// The handlers of one path. A `GET` answers `HEAD`, too.
#[derive(Debug)]
pub struct Methods {
    router: MethodRouter<App>,
    list: Vec<&'static str>,
}

macro_rules! methods {
    ($($name:ident $method:ident)*) => {
        $(
            pub fn $name<H: Handler<T, App>, T: 'static>(handler: H) -> Methods {
                let list = vec![stringify!($method)];
                Methods { router: routing::$name(handler), list }
            }
        )*

        impl Methods {
            $(
                #[must_use]
                pub fn $name<H: Handler<T, App>, T: 'static>(mut self, handler: H) -> Self {
                    self.list.push(stringify!($method));
                    Self { router: self.router.$name(handler), ..self }
                }
            )*
        }
    };
}

methods! { get GET post POST put PUT patch PATCH delete DELETE }

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn route(mut self, path: &str, methods: Methods) -> Self {
        let listed = |method| Listed { method, path: path.to_owned() };
        self.list.extend(methods.list.into_iter().map(listed));
        Self { router: self.router.route(path, methods.router), ..self }
    }

    /// A path whose handler finds the method and the rest of the path out itself; `listed` is what
    /// it knows.
    #[must_use]
    pub fn dispatched<H: Handler<T, App>, T: 'static>(
        mut self,
        path: &str,
        handler: H,
        listed: impl IntoIterator<Item = (Method, &'static str)>,
    ) -> Self {
        let listed = listed.into_iter().map(|(method, path)| {
            let known = ["GET", "POST", "PUT", "PATCH", "DELETE"].into_iter();
            let method = known.into_iter().find(|known| method == *known).unwrap_or("OTHER");
            Listed { method, path: path.to_owned() }
        });
        self.list.extend(listed);
        Self { router: self.router.route(path, routing::any(handler)), ..self }
    }

    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.list.extend(other.list);
        Self { router: self.router.merge(other.router), ..self }
    }

    #[must_use]
    pub fn body_limit(self, limit: DefaultBodyLimit) -> Self {
        Self { router: self.router.layer(limit), ..self }
    }

    /// What there is, sorted.
    pub fn list(mut self) -> Vec<Listed> {
        self.list.sort();
        self.list
    }

    pub fn into_router(self) -> Router<App> {
        self.router
    }
}
