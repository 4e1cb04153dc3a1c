//! Handles by role: each has the methods of every connection, and those that its role needs.

/// Declares a role: a handle that shares the connection.
macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(std::sync::Arc<$crate::client::Connection>);

        impl $name {
            pub(in crate::client) fn of(connection: &std::sync::Arc<$crate::client::Connection>) -> Self {
                Self(connection.clone())
            }
        }

        impl std::ops::Deref for $name {
            type Target = $crate::client::Connection;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
    };
}

pub(in crate::client) use role;
