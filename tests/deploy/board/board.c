/* Runs a student's self-check on a Cortex-M4 and tells an emulator how many values are wrong. */
#include <stdint.h>

#include "net17.h"

extern uint32_t stack_top;

static void leave(uint32_t code) {
  const uint32_t block[2] = {0x20026u, code}; /* "the application has ended", and its status */
  __asm volatile("mov r0, #0x20\n mov r1, %0\n bkpt 0xAB" : : "r"(block) : "r0", "r1", "memory");
  for (;;) {
  }
}

static void reset(void) {
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* switches the floating-point unit on */
  __asm volatile("dsb\n isb");
  leave((uint32_t)net17_self_check());
}

static void fault(void) { leave(255u); }

typedef union {
  void (*run)(void);
  uint32_t *top;
} entry;

__attribute__((section(".vectors"), used)) static const entry vectors[16] = {
  {.top = &stack_top}, {reset}, {fault}, {fault}, {fault}, {fault}, {fault}};
