// Package alert tells operators, by webhooks, of the events that the parts report: never by mail, which would go through
// the server that is away.
//
// What a caller may rely on:
//   - Raise never waits and never fails.
//   - Of what is said again and again about one subject, only the changes are sent, and an alarm once more after
//     Config.Repeat. What came and went within Config.Settle of the last message about it is not sent.
//   - A message that a webhook did not take is tried again, for Config.GiveUp; meanwhile newer words about the same
//     subject take its place. Many of one kind at once become one message.
//
// What to send is decided in box.go, a value without clock or network; Run owns one goroutine a webhook.
package alert
