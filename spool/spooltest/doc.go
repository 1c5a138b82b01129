// Package spooltest holds a spool engine to the contract of package spool: Run is the one suite that each of them
// passes. It is run twice, as it is and with the spool closed and opened again between the steps.
package spooltest
