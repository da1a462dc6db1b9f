//! Enums over the rows of a table of the registry, and macros that dispatch to the configuration of a row.

/// Defines the enum `$name` with a variant for each row, and
///
/// - `$each!(value, config => expression)`: the expression with the configuration in `value`;
/// - `$every!(Config, variant => expression)`: an array of the expression for each row, with its type and the
///   constructor of its variant.
macro_rules! rows {
    (
        $d:tt $(#[$meta:meta])*
        enum $name:ident [$each:ident, $every:ident]
        { $($(#[$doc:meta])* $row:ident($config:ty),)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $row($config),)+
        }

        macro_rules! $each {
            ($d value:expr, $d config:ident => $d body:expr) => {
                match $d value {
                    $($name::$row($d config) => $d body,)+
                }
            };
        }

        macro_rules! $every {
            ($d type:ident, $d variant:ident => $d body:expr) => {
                [$({
                    type $d type = $config;
                    #[allow(unused_variables, reason = "not every expression makes a value of the enum")]
                    let $d variant = $name::$row;
                    $d body
                }),+]
            };
        }
    };
    (
        $d:tt $(#[$meta:meta])*
        enum $name:ident [$each:ident, $every:ident]
        $(#[$net_meta:meta])*
        nets $net:ident: $trait:path [$each_net:ident, $build:ident]
        $rows:tt
    ) => {
        rows! { $d $(#[$meta])* enum $name [$each, $every] $rows }
        nets! { $d $(#[$net_meta])* enum $net: $trait [$name, $each_net, $build] $rows }
    };
}

/// Defines the enum `$net` of the networks of each row on a backend with values of type `V`, and
///
/// - `$each_net!(value, net => expression)`: the expression with the network in `value`;
/// - `$build!(value, config => expression)`: the network that the expression builds from the configuration in `value`.
macro_rules! nets {
    (
        $d:tt $(#[$meta:meta])*
        enum $net:ident: $trait:path [$name:ident, $each_net:ident, $build:ident]
        { $($(#[$doc:meta])* $row:ident($config:ty),)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "one per network")]
        pub enum $net<V: Clone> {
            $($(#[$doc])* $row(<$config as $trait>::Net<V>),)+
        }

        macro_rules! $each_net {
            ($d value:expr, $d inner:ident => $d body:expr) => {
                match $d value {
                    $($net::$row($d inner) => $d body,)+
                }
            };
        }

        macro_rules! $build {
            ($d value:expr, $d config:ident => $d body:expr) => {
                match $d value {
                    $($name::$row($d config) => $d body.map($net::$row),)+
                }
            };
        }
    };
}
