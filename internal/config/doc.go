// Package config composes the parts' configurations from one YAML file. It promises that a file is either understood
// completely or refused with every fault at once, each at its line and column: a key that is not known, or known
// under another name, is never passed over.
//
// It reads the syntax tree of the YAML library against the Go types of the parts, so a part adds a key by adding a
// field with a yaml tag. Its default is in the part's DefaultConfig, its rules are in the part's Validate, its manual
// is in the field's comment and in the annotated reference file, which a test holds against the types.
package config
