package parity

import "time"

// Config says when an alarm is raised, and how long counts are kept.
type Config struct {
	AlarmBypass   float64       // the bypass rate above which an alarm is raised; 1: never
	AlarmMessages int           // messages that we took, at least, before the rate is believed
	Keep          time.Duration // how long the counts of a day are kept
}
