package mta

import "fmt"

// Fault is one mistake in a configuration, at the place where the operator can mend it.
type Fault struct {
	Key  string // the YAML path below the validated section: "listen[0]", "primaries[1]"
	Text string // what is wrong and what would be right
}

// NewFault makes a Fault; format and args give its text.
func NewFault(key, format string, args ...any) Fault {
	return Fault{Key: key, Text: fmt.Sprintf(format, args...)}
}
