// Package mta holds the nouns that the parts of Understudy share: who a message is from and for (Path, Recipient,
// Envelope), who sent it (Peer), what was answered (Reply), where it goes (Route, Primary), and what became of it
// (Lease, Settlement, Outcome).
//
// It knows no I/O and imports nothing of ours. The five parts never import each other: what one hands to another is
// a type of this package.
package mta
