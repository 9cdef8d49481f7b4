//! The engine's SQLite database: opening, migrations, durable and relaxed transactions
