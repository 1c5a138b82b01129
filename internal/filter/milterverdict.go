package filter

import (
	"strings"

	"github.com/emersion/go-milter"

	"understudy/internal/mta"
)

// milterVerdict is what a milter made of a message.
type milterVerdict struct {
	action mta.Action
	status string // as of mta.Finding
	text   string // what it wants the sender to hear
	detail string
}

func (v *milterVerdict) findings(name string) []mta.Finding {
	if v.action == mta.Accept {
		return nil
	}
	f := mta.Finding{Name: "milter:" + name, Action: v.action, Status: v.status, Text: v.text, Detail: line(v.detail, maxDetail)}
	if f.Text == "" {
		f.Text = milterTexts[v.action]
	}
	return []mta.Finding{f}
}

var milterTexts = map[mta.Action]string{
	mta.Mark:       "the message looks like spam",
	mta.Quarantine: "the message is kept from its recipients",
	mta.Defer:      "the message can't be taken now, try again later",
	mta.Reject:     "the message is refused by policy",
}

// milterDecision tells what an answer means for the message; not done: go on. What it would discard is quarantined.
func milterDecision(a *milter.Action) (v milterVerdict, done bool) {
	switch a.Code {
	case milter.ActContinue:
		return milterVerdict{}, false
	case milter.ActAccept:
		return milterVerdict{}, true
	case milter.ActReject:
		return milterVerdict{action: mta.Reject}, true
	case milter.ActDiscard:
		return milterVerdict{action: mta.Quarantine, detail: "would discard the message"}, true
	case milter.ActReplyCode:
		return milterReply(a), true
	}
	return milterVerdict{action: mta.Defer}, true // tempfail
}

// milterReply takes a reply of the milter's own. One that is no refusal is not fit to be said, so it defers.
func milterReply(a *milter.Action) milterVerdict {
	r := mta.ParseReply(a.SMTPCode, a.SMTPText)
	v := milterVerdict{action: mta.Defer, text: line(r.Text, maxText), detail: "replies " + a.SMTPText}
	if r.Permanent() {
		v.action = mta.Reject
	}
	if r.Permanent() || r.Temporary() {
		_, v.status, _ = strings.Cut(r.Enhanced, ".")
	}
	return v
}

// milterWishes adds what a milter that takes the message wants done to it: a quarantine is kept, and a field that says
// that it is spam, or another subject, is a mark. All else is for the primary's own milter to do.
func milterWishes(v milterVerdict, wants []milter.ModifyAction) milterVerdict {
	if v.action > mta.Quarantine {
		return v
	}
	for i := range wants {
		w := &wants[i]
		switch {
		case w.Code == milter.ActQuarantine:
			if v.action < mta.Quarantine {
				v = milterVerdict{action: mta.Quarantine, detail: "quarantine: " + w.Reason}
			}
		case v.action < mta.Mark && isMark(w):
			v = milterVerdict{action: mta.Mark, detail: w.HeaderName + ": " + w.HeaderValue}
		}
	}
	return v
}

// isMark tells the fields by which milters mark spam from the many that they add to all mail.
func isMark(w *milter.ModifyAction) bool {
	switch w.Code {
	case milter.ActAddHeader, milter.ActInsertHeader, milter.ActChangeHeader:
	default:
		return false
	}
	value := strings.ToLower(strings.TrimSpace(w.HeaderValue))
	switch strings.ToLower(w.HeaderName) {
	case "x-spam-flag", "x-spam", "x-spam-status":
		return strings.HasPrefix(value, "yes")
	case "x-virus-status":
		return strings.HasPrefix(value, "infected")
	case "subject":
		return value != ""
	}
	return false
}
