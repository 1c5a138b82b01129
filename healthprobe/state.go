package healthprobe

import "fmt"

// State is what we believe of a primary.
type State uint8

const (
	Unknown  State = iota // not probed since the start
	Up                    // takes mail
	Refusing              // answers, but does not take mail
	Down                  // does not answer
)

var stateNames = [...]string{"unknown", "up", "refusing", "down"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *State) UnmarshalText(b []byte) error {
	for i, n := range stateNames {
		if n == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("state %q is unknown", b)
}
