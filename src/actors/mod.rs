//! The actors that run the graph.
