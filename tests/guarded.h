// How a test hears of what the emulator throws: "" or the message, valid until the next call.
#pragma once

#include <exception>
#include <string>

namespace {

std::string message;

template <class F>
const char* guarded(F f) {
    message.clear();
    try {
        f();
    } catch (const std::exception& e) {
        message = e.what();
    }
    return message.c_str();
}

}  // namespace
