// Package header reads the header of a message as it stands: each field's name, its raw value and the octets that it
// takes, so that whole fields can be left out and everything else stays as it came.
//
// It reads as a stream, in bounded memory, and never fails on what a message holds: lines that are no field are given
// too, and the spans of all together cover the header without a gap. The empty line and the body are not read.
package header
