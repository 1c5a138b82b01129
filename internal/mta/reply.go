package mta

import (
	"fmt"
	"strconv"
	"strings"
)

// Reply is an SMTP reply: what a primary said to us, or what we mean to say to a client. It is an error, so that a
// refusal travels in an error chain; any error without a Reply in it is our own fault and is said as 451 4.3.0.
type Reply struct {
	Code     int    `json:"code"`               // 200–599; 0 is "no reply"
	Enhanced string `json:"enhanced,omitempty"` // "5.1.1" (RFC 3463), empty if there was none
	Text     string `json:"text,omitempty"`     // lines are separated by \n
}

// NewReply makes a Reply; format and args give its text.
func NewReply(code int, enhanced, format string, args ...any) *Reply {
	return &Reply{Code: code, Enhanced: enhanced, Text: fmt.Sprintf(format, args...)}
}

// ParseReply takes the enhanced status code off the text of a reply, when its class agrees with the code (RFC 2034).
func ParseReply(code int, text string) Reply {
	r := Reply{Code: code, Text: text}
	first, _, _ := strings.Cut(text, "\n")
	status, _, _ := strings.Cut(first, " ")
	if !validEnhanced(status) || int(status[0]-'0') != code/100 {
		return r
	}
	r.Enhanced = status
	lines := strings.Split(text, "\n")
	for i, l := range lines { // each line of a multi-line reply repeats it (RFC 2034, 4)
		if rest, ok := strings.CutPrefix(l, status); ok {
			lines[i] = strings.TrimPrefix(rest, " ")
		}
	}
	r.Text = strings.Join(lines, "\n")
	return r
}

func validEnhanced(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || len(parts[0]) != 1 || !strings.Contains("245", parts[0]) {
		return false
	}
	for _, p := range parts[1:] {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n > 999 || p != strconv.FormatUint(n, 10) {
			return false
		}
	}
	return true
}

// Error is the reply on one line: "550 5.1.1 no such user".
func (r *Reply) Error() string { return r.String() }

// String is the reply on one line: "550 5.1.1 no such user".
func (r Reply) String() string {
	s := strconv.Itoa(r.Code)
	if r.Enhanced != "" {
		s += " " + r.Enhanced
	}
	if r.Text != "" {
		s += " " + strings.ReplaceAll(r.Text, "\n", " ")
	}
	return s
}

// Positive reports a 2yz or 3yz reply.
func (r Reply) Positive() bool { return r.Code/100 == 2 || r.Code/100 == 3 }

// Temporary reports a 4yz reply.
func (r Reply) Temporary() bool { return r.Code/100 == 4 }

// Permanent reports a 5yz reply.
func (r Reply) Permanent() bool { return r.Code/100 == 5 }
