package spool

// Crash leaves an engine as a process that is killed would.
func Crash(s Spool) { crash(s.(*Store)) }
